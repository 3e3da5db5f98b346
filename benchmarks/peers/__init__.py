"""The servers that ours is compared with, each written the way its users write it.

Every one is started in a directory that holds the artifact as `model/`, as `/opt/ml` does on the platform.
"""
