"""How the demo model and data were made: each module here is a command that makes or checks one of them."""
