"""P4b: the usual stack, which PinRec's answers are compared with: FastAPI, a SASRec, Redis and FAISS.

`environment` installs Redis and its client into a virtual environment of their own, `server` is the application,
`stack` starts and stops it, and `measure` puts the same load on it and on PinRec in turn.
"""
