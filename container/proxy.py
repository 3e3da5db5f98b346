"""The parts of nginx's configuration that many models need: which shard a request belongs to. nginx.conf marks where they go."""

from pathlib import Path

LOAD_SECONDS = 365
"""How long a load or an unload may take; the platform waits 360 s."""
IDLE_SECONDS = 5
"""How long nginx keeps a connection to a shard that nobody uses. A shard may end itself only where it has none (worker.py)."""


def http_block(run_dir: Path, shards: int, replicas: int) -> str:
    """Maps and upstreams. The name in the path decides the owner; a replica is so many shards further on, in a ring."""
    ring = " ".join(f'"{owner}:{copy}" {(owner + copy) % shards};' for owner in range(shards) for copy in range(replicas))
    kept = f"keepalive 256; keepalive_timeout {IDLE_SECONDS}s; keepalive_requests 1000000;"
    upstreams = "\n".join(
        f"    upstream shard{shard} {{ server unix:{run_dir}/shard-{shard}.sock max_fails=0; {kept} }}" for shard in range(shards)
    )
    return f"""map "$request_method $uri" $model {{
        volatile;
        default "";
        "~(?s)^\\w+ /_load/(?<of_order>.+)$" $of_order;
        "~(?s)^POST /models/(?<of_invocation>.+)/invoke$" $of_invocation;
        "~(?s)^\\w+ /models/(?<of_path>.+)$" $of_path;
    }}
    split_clients "$model" $owner {{ {_evenly(shards)} }}
    split_clients "$request_id" $some_replica {{ {_evenly(replicas)} }}
    map "$request_method $uri" $replica {{ volatile; default 0; "~(?s)^POST /models/.+/invoke$" $some_replica; }}
    map "$owner:$replica" $shard {{ volatile; default 0; {ring} }}
    map $request_method $models {{ default workers; GET status; HEAD status; }}
    upstream status {{ server unix:{run_dir}/status.sock; }}
{upstreams}"""


def server_block() -> str:
    """Locations. What begins with an underscore comes from the shards alone (X-Accel-Redirect)."""
    return f"""merge_slashes off;
        location = /models {{
            if (!-f $ready) {{
                return 503;
            }}
            proxy_pass http://$models;
        }}
        location ~ (?s)^/models/.+/invoke$ {{
            proxy_pass http://shard$shard;
        }}
        location /models/ {{
            proxy_read_timeout {LOAD_SECONDS}s;
            proxy_pass http://shard$shard;
        }}
        location /_load/ {{
            internal;
            proxy_method POST;
            proxy_read_timeout {LOAD_SECONDS}s;
            proxy_pass http://shard$shard;
        }}"""


def servers(run_dir: Path, shards: int) -> str:
    """The upstream of requests that any shard may take."""
    return " ".join(f"server unix:{run_dir}/shard-{shard}.sock max_fails=0;" for shard in range(shards))


def _evenly(parts: int) -> str:
    """The percentages of split_clients: it takes two decimals, and no more than 100 in all; the last part is the rest."""
    least, more = divmod(10_000, parts)
    shares = [(least + (part < more)) / 100 for part in range(parts - 1)]
    return " ".join([*(f"{share:.2f}% {part};" for part, share in enumerate(shares)), f"* {parts - 1};"])
