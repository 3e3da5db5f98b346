"""The stack of the classic bring-your-own-container samples: nginx, gunicorn, Flask, pandas."""
