"""The session: the process that holds the model and does the work, and how a client reaches it.

One line of JSON a message, over a Unix socket that only its owner can open:

    both, first        {"version": 2}                  a side of another version is told so, and left
    client → session   {"id": 7, "command": "chat", "arguments": {…}}
    session → client   {"id": 7, "part": {…}}          any number of times while a job runs
                       {"id": 7, "result": {…}}        or {"id": 7, "error": "One sentence.", "exit_code": 1}
                       {"event": {…}}                  a run's events, after `follow`
                       {"lost": "A sentence's begin"}  why the session closes this connection

A line is at most 32 MiB long.

See `tuitune.session.messages` for the commands.
"""
