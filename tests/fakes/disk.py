"""A disk that forgets what was not synced.

Rules of the file:
- A file's content is safe after `sync_file`; a name in a folder (new, renamed, removed) after `sync_folder`.
- A rename is one: when either folder was synced, both ends are (as journalling file systems have it).
- `cut(keep=False)` forgets all that is not safe; `keep=True` is the other extreme: everything had reached the disk.
- `view(safe=True)` is what a power cut at this instant would leave.
- Replacing, linking, moving go through `Durable`, in the steps of interlock_shared.durable.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field


@dataclass(eq=False)
class File:
    """Bytes. `safe` is None until they were synced once."""

    data: bytes
    safe: bytes | None = None


@dataclass(eq=False)
class Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False)
class Folder:
    """Names; `safe` are those that a power cut leaves."""

    names: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)


Node = File | Link | Folder


class Disk:
    """Paths are relative, with slashes."""

    def __init__(self) -> None:
        self.root = Folder()
        self._moved: dict[int, tuple[Folder, str]] = {}
        self.numbers = 0

    # --- looking ------------------------------------------------------------------------------------------------

    def node(self, path: str, safe: bool = False) -> Node | None:
        """What is there; None for nothing."""
        node: Node | None = self.root
        for part in path.split("/") if path else ():
            if not isinstance(node, Folder):
                return None
            node = (node.safe if safe else node.names).get(part)
        return node

    def read(self, path: str, safe: bool = False) -> bytes | None:
        """A file's content; None when there is none."""
        node = self.node(path, safe)
        if not isinstance(node, File):
            return None
        return (node.safe or b"") if safe else node.data

    def link(self, path: str, safe: bool = False) -> str:
        """A link's target; "" when there is none."""
        node = self.node(path, safe)
        return node.target if isinstance(node, Link) else ""

    def names(self, path: str, safe: bool = False) -> list[str]:
        """Names in a folder, sorted; none when there is no such folder."""
        node = self.node(path, safe)
        return sorted(node.safe if safe else node.names) if isinstance(node, Folder) else []

    def _parent(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        parent = self.node(folder)
        if not isinstance(parent, Folder):
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return parent, name

    # --- changing -----------------------------------------------------------------------------------------------

    def make(self, path: str) -> None:
        """A folder and its parents; as `mkdir -p`."""
        node = self.root
        for part in path.split("/"):
            following = node.names.get(part)
            if following is None:
                following = node.names[part] = Folder()
            assert isinstance(following, Folder), path
            node = following

    def write(self, path: str, data: bytes) -> None:
        """A file's content, not synced."""
        parent, name = self._parent(path)
        there = parent.names.get(name)
        if isinstance(there, File):
            there.data = data
        else:
            parent.names[name] = File(data)

    def symlink(self, path: str, target: str) -> None:
        """A link, its name not synced."""
        parent, name = self._parent(path)
        parent.names[name] = Link(target)

    def rename(self, source: str, target: str) -> None:
        """Not synced."""
        one, name = self._parent(source)
        two, new = self._parent(target)
        if name not in one.names:
            raise FileNotFoundError(errno.ENOENT, "nothing to rename", source)
        there = two.names.get(new)
        if isinstance(there, Folder) and there.names:
            raise OSError(errno.ENOTEMPTY, "not empty", target)
        node = one.names.pop(name)
        two.names[new] = node
        if one is not two:
            self._moved[id(node)] = (one, name)

    def remove(self, path: str) -> None:
        """A name and all below it, not synced; one that is not there is no error."""
        folder, _, name = path.rpartition("/")
        parent = self.node(folder)
        if isinstance(parent, Folder):
            parent.names.pop(name, None)

    # --- syncing ------------------------------------------------------------------------------------------------

    def sync_file(self, path: str) -> None:
        """Sync of a file."""
        node = self.node(path)
        assert isinstance(node, File), path
        node.safe = node.data

    def sync_folder(self, path: str) -> None:
        """Sync of a folder."""
        node = self.node(path)
        assert isinstance(node, Folder), path
        self._sync_names(node)

    def _sync_names(self, folder: Folder) -> None:
        for name, node in folder.safe.items():  # the other end of a rename out of this folder
            if name not in folder.names:
                self._arrive(node)
        folder.safe = dict(folder.names)
        for node in folder.names.values():
            moved = self._moved.pop(id(node), None)
            if moved is not None:
                left, old = moved
                if left.safe.get(old) is node:
                    del left.safe[old]

    def _arrive(self, node: Node) -> None:
        if id(node) not in self._moved:
            return
        for folder in self._folders(self.root):
            for name, there in folder.names.items():
                if there is node:
                    folder.safe[name] = node

    def _folders(self, folder: Folder) -> list[Folder]:
        below = [f for node in folder.names.values() if isinstance(node, Folder) for f in self._folders(node)]
        return [folder, *below]

    def sync_tree(self, path: str) -> None:
        """Everything below a folder."""
        node = self.node(path)
        assert isinstance(node, Folder), path
        for folder in self._folders(node):
            self._sync_names(folder)
            for below in folder.names.values():
                if isinstance(below, File):
                    below.safe = below.data

    def unsynced(self) -> bool:
        """Whether a cut that forgets and one that keeps would leave different things."""
        for folder in self._folders(self.root):
            if folder.names != folder.safe:
                return True
            if any(isinstance(node, File) and node.safe != node.data for node in folder.names.values()):
                return True
        return False

    def cut(self, keep: bool) -> None:
        """The power is gone, and comes back."""
        if keep:
            self.sync_tree("") if self.root.names else None
        self._moved.clear()
        self._recover(self.root)

    def _recover(self, folder: Folder) -> None:
        folder.names = dict(folder.safe)
        for node in folder.names.values():
            if isinstance(node, Folder):
                self._recover(node)
            elif isinstance(node, File):
                node.safe = node.data = node.safe or b""

    # --- as interlock_shared.durable does it ----------------------------------------------------------------------

    def _temporary(self, path: str) -> str:
        self.numbers += 1
        folder, _, name = path.rpartition("/")
        return f"{folder}/.tmp-{name}-{self.numbers}"

    def replace_file(self, path: str, data: bytes) -> None:
        """New content under that name, durably."""
        temporary = self._temporary(path)
        self.write(temporary, data)
        self.sync_file(temporary)
        self.rename(temporary, path)
        self.sync_parent(path)

    def replace_link(self, path: str, target: str) -> None:
        """A link, durably."""
        temporary = self._temporary(path)
        self.symlink(temporary, target)
        self.rename(temporary, path)
        self.sync_parent(path)

    def remove_name(self, path: str) -> None:
        """Durably gone."""
        self.remove(path)
        self.sync_parent(path)

    def rename_folder(self, source: str, target: str) -> None:
        """Durably moved."""
        self.rename(source, target)
        self.sync_parent(target)
        self.sync_parent(source)

    def make_folder(self, path: str) -> None:
        """A folder and its parents, their names durable."""
        parts = path.split("/")
        for depth in range(len(parts)):
            if self.node("/".join(parts[: depth + 1])) is None:
                self.make("/".join(parts[: depth + 1]))
                self.sync_folder("/".join(parts[:depth]))

    def sync_parent(self, path: str) -> None:
        """Sync of the folder that a name is in."""
        self.sync_folder(path.rpartition("/")[0])
