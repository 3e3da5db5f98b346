"""Everything that runs inside the image. One noun per module; imports point down only (tests/test_imports.py)."""
