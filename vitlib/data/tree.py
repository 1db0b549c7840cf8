"""A folder or a zip file of class folders, listed and read without trusting it."""

import errno
import hashlib
import os
import re
import threading
import unicodedata
import zipfile
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from vitlib.errors import UserError

Node = dict[str, "Node | str"]  # a name -> a folder's own Node, or the path that reads a file

MAX_DEPTH = 6  # wrapper folders, train/test, class, image: anything deeper is not such a tree
MAX_ENTRIES = 1_000_000
MAX_FILE_BYTES = 256 * 2**20
MAX_ZIP_BYTES = 16 * 2**30  # of all members, unpacked
MAX_ZIP_RATIO = 200  # unpacked to packed size, where there is enough of it to do harm
RATIO_MATTERS_BYTES = 64 * 2**20

LAYOUT = "请把数据放成“文件夹/类别/图像”，或在 train 与 test 两个子文件夹里各放一份这样的类别文件夹"
REASONS = {
    errno.ENOENT: "不存在", errno.EACCES: "没有访问权限", errno.EPERM: "没有访问权限",
    errno.EROFS: "所在的磁盘是只读的", errno.ELOOP: "是一个绕回自己的链接（链接成环）",
    errno.ENOSPC: "磁盘空间不足", errno.EDQUOT: "磁盘配额已用完", errno.EFBIG: "超出了允许的文件大小，空间不足",
    errno.ENOTDIR: "路径中有一段不是文件夹", errno.EISDIR: "是一个文件夹", errno.EEXIST: "已经存在",
}  # fmt: skip


def reason(error: OSError) -> str:
    """Say in Chinese why the operating system refused."""
    return REASONS.get(error.errno or 0, f"系统报告“{error.strerror or error}”")


def listing(folder: Path) -> list[str]:
    """Return the names in a folder; raises UserError where it is missing or may not be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"无法读取文件夹 {folder}：{reason(error)}。请检查路径和权限。") from error


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``2.jpg`` before ``10.jpg``."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(p), p) if i % 2 else (-1, p) for i, p in enumerate(pieces)]


class Tree(ABC):
    """Class folders with images in them.

    ``where`` is the path for messages, ``key`` a hex digest that changes with the content, ``root`` the
    listing with hidden files left out, ``read(path)`` the bytes of one file.
    """

    where: Path

    @property
    @abstractmethod
    def key(self) -> str: ...

    @property
    @abstractmethod
    def root(self) -> Node: ...

    @abstractmethod
    def read(self, path: str) -> bytes: ...

    def part(self, name: str | None) -> Node:
        """Return the folder that holds the class folders: the whole, or the part train or test."""
        node = _unwrap(self.root)
        if name is None:
            return node
        return next(sub for folder, sub in _folders(node).items() if folder.casefold() == name)

    def has_parts(self) -> bool:
        """Whether the images come already divided into train and test."""
        return {"train", "test"} <= {name.casefold() for name in _folders(_unwrap(self.root))}

    def classes(self, part: str | None = None) -> dict[str, list[str]]:
        """Return the files of each class, both in natural order.

        Raises UserError where there is no class folder, an empty one, or one with folders inside.
        """
        where = f"{self.where} 的 {part} 部分" if part else f"{self.where}"
        folders = _folders(self.part(part))
        if not folders:
            raise UserError(f"{where} 里没有类别文件夹。{LAYOUT}。")
        found: dict[str, list[str]] = {}
        for name in sorted(folders, key=natural):
            if inner := _folders(folders[name]):
                raise UserError(f"{where} 的类别文件夹“{name}”里还有文件夹“{next(iter(inner))}”。{LAYOUT}。")
            if not folders[name]:
                raise UserError(f"{where} 的类别文件夹“{name}”是空的。请放入这一类的图像，或删除这个文件夹。")
            files = [path for path in folders[name].values() if isinstance(path, str)]
            # a zip from a Chinese Windows, unpacked elsewhere, leaves names in GBK: to Python surrogates, not characters
            odd = re.search("[\ud800-\udfff]", name)
            text = unicodedata.normalize(
                "NFC", os.fsencode(name).decode("gb18030", "backslashreplace") if odd else name
            )
            found[text] = sorted([*found.get(text, []), *files], key=natural)  # one name in two encodings is one class
        return found


def open_tree(path: str | os.PathLike[str]) -> Tree:
    """Open a folder or a zip file; raises UserError where it is neither or cannot be reached."""
    where = Path(os.path.expanduser(path))
    try:
        where.stat()
        if where.is_dir():
            return FolderTree(where)
        if zipfile.is_zipfile(where):
            return ZipTree(where)
        with where.open("rb"):  # is_zipfile says only False where reading is not allowed
            pass
    except OSError as error:
        raise UserError(f"无法打开数据 {where}：{reason(error)}。请检查路径和权限。") from error
    raise UserError(f"{where} 既不是文件夹，也不是完整的 zip 文件。请检查路径，或重新取得这个文件。")


class FolderTree(Tree):
    """A folder on disk. Links to files and folders are followed, loops are refused."""

    def __init__(self, where: Path):
        self.where = where
        self._stamps: list[str] = []

    @cached_property
    def root(self) -> Node:
        return self._list(str(self.where), "", ())

    @cached_property
    def key(self) -> str:
        stamps = (self.root, sorted(self._stamps))[1]  # listing fills the stamps
        return hashlib.sha256(
            "\n".join([str(self.where.resolve()), *stamps]).encode(errors="surrogateescape")
        ).hexdigest()

    def read(self, path: str) -> bytes:
        full = self.where / path
        if not full.is_file() and full.exists():
            raise OSError("不是普通文件")  # a pipe would block for ever
        if full.stat().st_size > MAX_FILE_BYTES:
            raise OSError("文件过大")
        return full.read_bytes()

    def _list(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Node:
        try:
            info = os.stat(folder)
            here = (info.st_dev, info.st_ino)
            if here in above:
                raise UserError(f"文件夹 {folder} 是指向自己上层的链接（链接成环）。请删除这个链接。")
            if len(above) >= MAX_DEPTH:
                raise UserError(f"文件夹 {folder} 的层数太多。{LAYOUT}。")
            node: Node = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _hidden(entry.name):
                        continue
                    path = prefix + entry.name
                    if entry.is_dir():
                        node[entry.name] = self._list(entry.path, path + "/", (*above, here))
                        continue
                    node[entry.name] = path
                    # A dangling link is listed, and is then an unreadable image.
                    stat = entry.stat(follow_symlinks=entry.is_file())
                    self._stamps.append(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}")
                    if len(self._stamps) > MAX_ENTRIES:
                        raise UserError(f"{self.where} 里的文件超过 {MAX_ENTRIES:,} 个。请检查路径。")
        except OSError as error:
            culprit = error.filename or folder
            raise UserError(f"无法读取文件夹 {culprit}：{reason(error)}。请检查路径和权限。") from error
        return node


class ZipTree(Tree):
    """A zip file, read in memory and never unpacked to disk."""

    def __init__(self, where: Path):
        self.where = where
        self._lock = threading.Lock()

    @cached_property
    def key(self) -> str:
        with self.where.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        # Names without the UTF-8 flag are GBK from a Chinese Windows, UTF-8 from some Macs.
        fault: Exception | None = None
        for encoding in ("utf-8", "gbk", "cp437"):
            try:
                return zipfile.ZipFile(self.where, metadata_encoding=encoding)
            except (UnicodeDecodeError, zipfile.BadZipFile, NotImplementedError) as error:
                fault = error
        raise UserError(f"zip 文件 {self.where} 已损坏（{fault}）。请重新取得这个文件。") from fault

    @cached_property
    def root(self) -> Node:
        members = self._zip.infolist()
        unpacked = sum(member.file_size for member in members)
        packed = max(sum(member.compress_size for member in members), 1)
        bomb = unpacked > RATIO_MATTERS_BYTES and unpacked > MAX_ZIP_RATIO * packed
        if bomb or unpacked > MAX_ZIP_BYTES or len(members) > MAX_ENTRIES:
            raise UserError(
                f"拒绝读取 zip 文件 {self.where}：解开后有 {len(members):,} 个文件、{unpacked / 2**20:,.0f} MiB，"
                f"是压缩后的 {unpacked / packed:,.0f} 倍，可能是压缩炸弹。请确认它的来源，或自己解压后给出文件夹。"
            )
        root: Node = {}
        for member in members:
            path = member.filename.replace("\\", "/")  # some Windows tools write backslashes
            pieces = path.strip("/").split("/")
            if path.startswith("/") or ".." in pieces or re.match(r"[A-Za-z]:", path):
                raise UserError(
                    f"拒绝读取 zip 文件 {self.where}：其中的路径“{member.filename}”指向文件夹之外。"
                    f"请确认它的来源，重新打包。"
                )
            if any(map(_hidden, pieces)):
                continue
            if member.flag_bits & 1:
                raise UserError(f"zip 文件 {self.where} 有密码。请解压后给出文件夹。")
            node: Node | str = root
            for piece in pieces if path.endswith("/") else pieces[:-1]:
                node = node.setdefault(piece, {}) if isinstance(node, dict) else node
            if isinstance(node, dict) and not path.endswith("/"):
                node[pieces[-1]] = member.filename
        return root

    def read(self, path: str) -> bytes:
        with self._lock:  # one file handle for all threads
            if self._zip.getinfo(path).file_size > MAX_FILE_BYTES:
                raise OSError("文件过大")
            return self._zip.read(path)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _folders(node: Node) -> dict[str, Node]:
    return {name: sub for name, sub in node.items() if isinstance(sub, dict)}


def _unwrap(node: Node) -> Node:
    """Step into a lone outer folder, such as the one that a zip of a folder has."""
    while len(folders := _folders(node)) == 1 and _folders(only := next(iter(folders.values()))):
        node = only
    return node
