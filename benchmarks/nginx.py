"""nginx as the benchmarks use it: one worker that hands on what upstream sends as it comes."""

from pathlib import Path
from typing import Final

_CONFIGURATION: Final = """
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream llm {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    LISTEN
    location / {{ proxy_pass http://llm; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""

PLAIN: Final = _CONFIGURATION.replace("LISTEN", "listen 127.0.0.1:{port} backlog=8192;")
TLS: Final = _CONFIGURATION.replace(
    "LISTEN",
    "listen 127.0.0.1:{port} ssl backlog=8192; ssl_certificate certificate.pem; ssl_certificate_key key.pem;",
)
"""`{port}` and `{upstream_port}` are to be filled in."""


def command(folder: Path) -> tuple[str, ...]:
    """It reads `folder`/nginx.conf and keeps all its files there."""
    return ("nginx", "-p", str(folder), "-e", "nginx.log", "-c", "nginx.conf")
