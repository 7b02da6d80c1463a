"""The terminal screens of tuitune, one module a step; everything Textual is here."""
