"""uvicorn and FastAPI in their fastest form: uvloop, httptools, no access log, nothing in front."""

import sys

sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # there for the classic sample; scikit-learn would import it in vain
