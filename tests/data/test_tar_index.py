import io
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from dcgan_dist.data.tar_index import Member, sample_at, scan, split_name
from dcgan_dist.errors import DataError


def tar_of(members: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def stock_samples(archive: bytes) -> list[dict[str, object]]:
    """The samples that the library finds in a tar."""
    files = tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(archive)}])
    return [sample for sample in group_by_keys(files) if len(sample) > 2]


@given(st.text("aB.0_/-", min_size=1, max_size=12))
@example("a/b.c/d.e.PNG")
@example("1.")
@example("__a__.png")
def test_names_are_split_as_webdataset_does_but_for_hidden_files(name):
    key, extension = base_plus_ext(name)
    is_hidden = name.rpartition("/")[2].startswith(".")
    is_meta = name.startswith("__") and "__/" in name[2:].partition("/")[0] + "/"
    if key is None or is_hidden or is_meta:
        assert split_name(name) is None
    else:
        assert split_name(name) == (key, extension.lower())


def test_what_webdataset_passes_over_is_no_sample():
    names = ["__meta__/1.png", "__a_b__/c/2.png", "__a/3.png", "a/__b__/4.png", "__c__.png", "5", "d/6.cls"]
    found = [sample["__key__"] for sample in stock_samples(tar_of([(name, b"x") for name in names]))]
    assert [split[0] for name in names if (split := split_name(name))] == found
    assert found == ["__a/3", "a/__b__/4", "__c__", "d/6"]


SAMPLES = [
    ("readme", b"no sample"),
    ("0.txt", b"without an image"),
    ("a/1.json", b"{}"),
    ("a/1.cls", b"3"),
    ("a/1.jpg", b"image 1" * 200),
    ("a/1.mask.PNG", b"mask"),
    ("2.JPG", b"image 2"),
    ("x" * 150 + "/3.cls", b"7"),
    ("x" * 150 + "/3.jpg", b"image 3" * 100),
    ("4.jpg", b"image 4"),
    ("4.txt", b"of 4"),
]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_sample_of_an_image_is_the_one_that_webdataset_makes(form):
    members = [entry for entry in SAMPLES if form != tarfile.USTAR_FORMAT or len(entry[0]) < 100]
    archive = tar_of(members, form)
    expected = {sample["__key__"]: sample for sample in stock_samples(archive) if "jpg" in sample}
    found = (part for part in scan(memoryview(archive)) if isinstance(part, Member))
    images = [member for member in found if member.name.lower().endswith(".jpg")]
    assert len(images) == len(expected) >= 3
    bounds = [0, *((member.offset + member.size + 511) // 512 * 512 for member in images)]
    for number, image in enumerate(images):
        start = bounds[number]
        stop = images[number + 1].offset - 512 if number + 1 < len(images) else len(archive)
        part = memoryview(archive)[start:stop]
        key, found = sample_at(part, image.offset - start, start)
        sample = {extension: member_of(part, member) for extension, member in found.items()}
        assert {"__key__": key, "__url__": "a.tar", **sample} == expected[key]


def member_of(archive, member: Member) -> bytes:
    return bytes(archive[member.offset : member.offset + member.size])


def test_damage_next_to_an_image_is_reported_with_its_offset_in_the_tar():
    archive = bytearray(tar_of([("1.jpg", b"a"), ("1.cls", b"1"), ("2.jpg", b"b"), ("2.cls", b"2")]))
    archive[1024 + 3] ^= 255  # the header of 1.cls
    for start, stop, image in ((0, 2048, 512), (1024, len(archive), 2560)):
        with pytest.raises(DataError, match="damaged next to it, at byte 1024"):
            sample_at(memoryview(archive)[start:stop], image - start, start)
