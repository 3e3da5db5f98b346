"""Our own figures beside the peers', made by programs that anybody can run again. Not part of the product."""
