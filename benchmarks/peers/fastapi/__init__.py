"""uvicorn and FastAPI in their fastest form: uvloop, httptools, no access log, nothing in front."""
