"""Which models can take a merger: one small file for each host library says where its blocks and tokens are."""

from patchmerger.hosts.find import block_names, find_host, register_host
from patchmerger.hosts.host import Host, RelativeBias, UnsupportedModelError

__all__ = ["Host", "RelativeBias", "UnsupportedModelError", "block_names", "find_host", "register_host"]
