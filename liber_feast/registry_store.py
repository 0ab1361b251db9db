"""Feast's registry in a file, handed out as one object for as long as it says the same.

Feast reads its registry anew on every push, and knows what it made of one (feature views, services) by the object that
it was read into. So with its own store every push makes all of them again, which takes longer than the push.
"""

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

__all__ = ["KeptRegistryStore"]


class KeptRegistryStore(FileRegistryStore):
    """The file is read every time; Feast names the class in `registry.registry_store_type`."""

    _kept: Registry | None = None

    def get_registry_proto(self) -> Registry:
        """Return what the file says: the object that was returned before, unless it or the file was changed since.

        Raises:
            FileNotFoundError: there is no file; `feast apply` makes it.
        """
        read: Registry = super().get_registry_proto()  # type: ignore[no-untyped-call]
        if self._kept != read:
            self._kept = read
        return self._kept
