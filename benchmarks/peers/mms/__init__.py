"""Handlers for Multi Model Server: `handle(data, context)`, called once without data to load the model."""

import sys

sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # there for the classic sample; scikit-learn would import it in vain
