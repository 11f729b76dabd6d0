import io
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset

from dcgan_dist.data import rooms
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.data.tar_index import map_file, members
from dcgan_dist.errors import DataError
from tests.data.shard_sets import encoded, make_set, random_images, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def tar_with(path, files, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PICTURE = encoded(random_images(1)[0], "png")


class TestFoldersWithAManifest:
    def test_it_has_what_the_manifest_says(self, tmp_path):
        shards = make_set(tmp_path / "set", [5, 8], size=32)
        dataset = open_dataset(shards.folder)
        assert (dataset.image_size, dataset.channels, dataset.count, dataset.sizes) == (32, 3, 13, (5, 8))
        assert dataset.labels().tolist() == list(range(13))
        assert dataset.describe() == (f"{shards.folder}: 13 colour images of 32x32 pixels in 2 shards, 13 classes")

    def test_its_digest_depends_on_its_content_and_not_on_its_location(self, tmp_path):
        digest = open_dataset(make_set(tmp_path / "set", [5, 8]).folder).digest
        shutil.copytree(tmp_path / "set", tmp_path / "elsewhere")
        assert open_dataset(tmp_path / "elsewhere").digest == digest
        assert open_dataset(make_set(tmp_path / "other pixels", [5, 8], seed=1).folder).digest != digest
        assert open_dataset(make_set(tmp_path / "other sizes", [8, 5]).folder).digest != digest

    def test_it_is_small_to_send(self, tmp_path):
        dataset = open_dataset(make_set(tmp_path / "set", [400, 300]).folder)
        assert len(pickle.dumps(dataset)) < 15_000
        assert pickle.loads(pickle.dumps(dataset)) == dataset

    def test_another_image_size_is_refused_with_the_way_out(self, tmp_path):
        folder = make_set(tmp_path / "set", [3], size=64).folder
        with pytest.raises(DataError) as error:
            open_dataset(folder, image_size=32)
        assert one_line(error).endswith(
            "the shards have 64x64 images, model.image_size is 32: prepare them again with --image-size 32"
        )

    def test_grey_shards_are_refused_for_colour_and_colour_for_grey(self, tmp_path):
        grey = make_set(tmp_path / "grey", [3], channels=1).folder
        assert open_dataset(grey, channels=1).channels == open_dataset(grey).channels == 1
        with pytest.raises(DataError, match=r"the shards have grey images, model\.channels is 3"):
            open_dataset(grey, channels=3)
        with pytest.raises(DataError, match=r"the shards have colour images, model\.channels is 1"):
            open_dataset(make_set(tmp_path / "colour", [3]).folder, channels=1)

    def test_a_manifest_without_any_of_its_shards_is_refused(self, tmp_path):
        shards = make_set(tmp_path / "set", [3, 4])
        for tar in shards.tars:
            tar.unlink()
        with pytest.raises(DataError, match="none of its shards"):
            open_dataset(shards.folder)

    def test_a_damaged_manifest_is_refused(self, tmp_path):
        shards = make_set(tmp_path / "set", [3])
        (shards.folder / "manifest.json").write_text("{")
        with pytest.raises(DataError, match="is not a manifest of shards"):
            open_dataset(shards.folder)

    def test_an_unfinished_folder_is_not_taken_for_someone_elses_shards(self, tmp_path):
        shards = make_set(tmp_path / "set", [3, 4])
        (shards.folder / "manifest.json").unlink()
        with pytest.raises(DataError, match="prepare did not finish there"):
            open_dataset(shards.folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder", "does not exist: give a folder of shards"),
        ("empty", "has no manifest.json and no .tar"),
        ("a_file", "is a file, not shards"),
        ("missing.tar", "there is no file 'missing.tar'"),
        ("missing-{0..2}.tar", "there is no file 'missing-0.tar'"),
        ("missing-{2..0}.tar", "is no range"),
        ("missing-{x}.tar", "is no range such as"),
        ("missing-{0..9", "has an open brace"),
        ("pipe:cat x.tar", "pipe: is no known scheme"),
        ("pipe:touch executed", "pipe: is no known scheme"),
        ("nonsense:20000", "nonsense: is no known scheme"),
        ("rooms:", "take a number of rooms"),
        ("rooms:-3", "take a number of rooms"),
        ("rooms:0", "take a number of rooms"),
    ],
)
def test_a_path_that_is_no_shards_is_one_line(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("")
    with pytest.raises(DataError) as error:
        open_dataset(path)
    assert message in one_line(error)
    assert not (tmp_path / "executed").exists()


class TestShardsMadeElsewhere:
    def test_a_tar_a_list_and_a_folder_of_tars_hold_the_same_as_webdataset_reads(self, tmp_path):
        images = random_images(25)
        folder = tmp_path / "tars"
        folder.mkdir()
        write_tar(folder / "a-08.tar", images[:9], 0)
        write_tar(folder / "a-09.tar", images[9:10], 9)
        write_tar(folder / "a-10.tar", images[10:], 10)
        stock = webdataset.WebDataset([str(tar) for tar in sorted(folder.iterdir())], shardshuffle=False)
        expected = [int(sample["cls"]) for sample in stock]
        for path in (folder, f"{folder}/a-{{08..10}}.tar", f"{folder}/a-{{08,09,10}}.tar"):
            dataset = open_dataset(path)
            assert dataset.sizes == (9, 1, 15)
            assert dataset.labels().tolist() == expected
            assert (dataset.image_size, dataset.channels) == (16, 3)
        assert open_dataset(folder / "a-10.tar").labels().tolist() == list(range(10, 25))

    def test_they_are_indexed_once_until_they_change(self, tmp_path, cache):
        tar = tmp_path / "one.tar"
        write_tar(tar, random_images(5))
        first = open_dataset(tar)
        made = {file: file.stat().st_mtime_ns for file in cache.rglob("*.index")}
        assert open_dataset(tar) == first
        assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.index")} == made
        write_tar(tar, random_images(6, seed=2))
        assert open_dataset(tar).count == 6
        assert open_dataset(tar).digest != first.digest

    def test_labels_are_read_from_cls_and_json_by_number_or_name(self, tmp_path):
        named = {"a.png": PICTURE, "a.json": b'{"label": "dog"}', "b.json": b'{"label": "cat"}', "b.png": PICTURE}
        dataset = open_dataset(tar_with(tmp_path / "named.tar", named))
        assert dataset.classes == ("cat", "dog")
        assert dataset.labels().tolist() == [1, 0]
        numbered = {"a.png": PICTURE, "a.cls": b"2", "b.png": PICTURE, "c.json": b'{"label": 1}', "c.jpg": PICTURE}
        dataset = open_dataset(tar_with(tmp_path / "numbered.tar", numbered))
        assert dataset.classes == ("0", "1", "2")
        assert dataset.labels().tolist() == [2, -1, 1]
        assert dataset.records(0)["json_size"].tolist() == [0, 0, 12]

    def test_other_members_are_ignored(self, tmp_path):
        files = {"README": b"x", "a.txt": b"text", "a.png": PICTURE, "a.pkl": b"\x80\x04.", "meta.json": b"{}"}
        assert open_dataset(tar_with(tmp_path / "a.tar", files)).count == 1

    def test_raw_images_tell_their_size_by_their_length(self, tmp_path):
        images = random_images(7, 28, 1)
        write_tar(tmp_path / "raw.tar", images, encoding="raw")
        dataset = open_dataset(tmp_path / "raw.tar")
        assert (dataset.image_size, dataset.channels) == (28, 1)
        batch = ImageStream(dataset, seed=0, batch_size=7).read(0)
        assert (batch.images.numpy() == images[batch.labels.numpy()]).all()

    def test_grey_images_are_no_colour_source_but_colours_can_be_read_as_grey(self, tmp_path):
        write_tar(tmp_path / "grey.tar", random_images(5, channels=1))
        write_tar(tmp_path / "colour.tar", random_images(5))
        assert open_dataset(tmp_path / "grey.tar").channels == 1
        with pytest.raises(DataError, match="the shards have grey images"):
            open_dataset(tmp_path / "grey.tar", channels=3)
        dataset = open_dataset(tmp_path / "colour.tar", channels=1)
        assert ImageStream(dataset, seed=0, batch_size=5).read(0).images.shape == (5, 16, 16, 1)

    def test_images_of_several_sizes_are_read_at_64_or_as_asked(self, tmp_path):
        files = {f"{size}.png": encoded(random_images(1, size)[0], "png") for size in (16, 28, 70)}
        tar = tar_with(tmp_path / "a.tar", files)
        assert open_dataset(tar).image_size == 64
        assert open_dataset(tar, image_size=32).image_size == 32

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a.txt": b"x"}, "no images"),
            (
                {"a.png": PICTURE, "a.jpg": PICTURE},
                "has 2 images of the key 'a' (png, jpg): choose one by image_member",
            ),
            (
                {"i.01.png": PICTURE, "i.02.png": PICTURE},
                "(01.png, 02.png): choose one by image_member, such as png; or ",
            ),
            ({"/a.png": PICTURE}, "names must not lead out of it"),
            ({"a.raw": bytes(768), "b.png": PICTURE}, "raw images are mixed with others"),
            ({"a.raw": bytes(769)}, "769 bytes are no raw square image"),
            ({"a.png": b"no picture"}, "none of the images looked at can be decoded"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, tmp_path, cache, files, message):
        tar = tar_with(tmp_path / "a.tar", files)
        with pytest.raises(DataError) as error:
            open_dataset(tar)
        assert message in one_line(error)
        assert not list(cache.rglob("manifest.json"))

    def test_the_plain_extension_is_the_image_unless_a_setting_names_another(self, tmp_path):
        other = encoded(random_images(1, seed=5)[0], "png")
        tar = tar_with(
            tmp_path / "a.tar", {"a.png": PICTURE, "a.mask.png": other, "b.mask.png": other, "b.jpg": PICTURE}
        )
        sizes = [int(size) for size in open_dataset(tar).records(0)["size"]]
        assert sizes == [len(PICTURE)] * 2
        chosen = open_dataset(tar, image_member="mask.png")
        assert [int(size) for size in chosen.records(0)["size"]] == [len(other)] * 2
        with pytest.raises(DataError, match=r"no images \(members KEY.tiff\) are in there"):
            open_dataset(tar, image_member="tiff")

    def test_links_are_refused(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(DataError, match="link or device"):
            open_dataset(tmp_path / "a.tar")


class TestRooms:
    def test_two_processes_at_once_make_them_once(self, cache):
        program = (
            "import sys\n"
            "from dcgan_dist.data import dataset\n"
            "make = dataset.write_shards\n"
            "def told(source, recipe, folder, **more):\n"
            "    print('found' if folder.exists() else 'made')\n"
            "    return make(source, recipe, folder, **more)\n"
            "dataset.write_shards = told\n"
            "print(dataset.open_dataset('rooms:1500', image_size=16).digest)\n"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [process.communicate(timeout=60)[0].split() for process in processes]
        assert sorted(output[0] for output in outputs) == ["found", "made"]
        assert outputs[0][1] == outputs[1][1]
        assert len(list(cache.rglob("*.tar"))) == 1

    def test_they_are_the_first_rooms_at_the_size_and_colours_asked_for(self):
        dataset = open_dataset("rooms:40", image_size=32, channels=1)
        assert dataset.describe() == "rooms:40: 40 grey images of 32x32 pixels in 1 shard, 2 classes"
        assert (open_dataset("rooms:40").image_size, open_dataset("rooms:40").channels) == (64, 3)
        assert dataset.classes == rooms.VIEWS
        views = [rooms.VIEWS.index(rooms.room_attributes(0, index)["view"]) for index in range(40)]
        assert sorted(dataset.labels().tolist()) == sorted(views)

    def test_their_pixels_are_those_that_are_drawn(self):
        batch = ImageStream(open_dataset("rooms:30"), seed=0, batch_size=30).read(0)
        drawn = [rooms.draw_room(0, index, 64)[0].astype(int) for index in range(30)]
        for image in batch.images.numpy().astype(int):
            assert min(np.abs(image - room).mean() for room in drawn) < 3  # what JPEG loses

    def test_they_are_the_same_wherever_they_are_made(self, tmp_path):
        here = open_dataset("rooms:100", image_size=16, cache=tmp_path / "here")
        there = open_dataset("rooms:100", image_size=16, cache=tmp_path / "there")
        assert here.digest == there.digest
        assert here.manifest == there.manifest


class TestTarReader:
    @pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    def test_it_finds_what_the_standard_library_finds(self, tmp_path, format):
        long = "folder/" * 12 + "b" * 90 + ".png" if format != tarfile.USTAR_FORMAT else "folder/" * 15 + "b.png"
        files = {"a.png": PICTURE, long: b"x" * 1000, "ä.cls": b"", "c.json": b"{}" * 256}
        tar = tar_with(tmp_path / "a.tar", files, format)
        with tarfile.open(tar) as archive:
            expected = [(member.name, member.offset_data, member.size) for member in archive.getmembers()]
        assert [(found.name, found.offset, found.size) for found in members(map_file(tar), "a")] == expected

    def test_damage_to_any_byte_of_a_header_is_found_with_its_offset(self, tmp_path):
        whole = tar_with(tmp_path / "a.tar", {f"{i}.png": PICTURE for i in range(3)}).read_bytes()
        second = whole.index(b"1.png")
        after_the_checksum = second + 155  # a blank without meaning
        for offset in {*range(second, second + 512)} - {after_the_checksum}:
            content = bytearray(whole)
            content[offset] ^= 0x55
            with pytest.raises(DataError, match=f"at byte {second}"):
                list(members(memoryview(content), "a"))

    def test_a_truncation_at_any_byte_before_the_end_is_found(self, tmp_path):
        whole = tar_with(tmp_path / "a.tar", {f"{i}.png": PICTURE for i in range(3)}).read_bytes()
        end = len(whole.rstrip(b"\0"))
        for length in (*range(1, end, 97), end):
            with pytest.raises(DataError, match="is cut off at byte"):
                list(members(memoryview(whole[:length]), "a"))

    def test_a_header_wiped_to_zeros_is_not_the_end(self, tmp_path):
        whole = bytearray(tar_with(tmp_path / "a.tar", {f"{i}.png": PICTURE for i in range(3)}).read_bytes())
        second = whole.index(b"1.png")
        whole[second : second + 512] = bytes(512)
        with pytest.raises(DataError, match=f"bytes after its end at byte {second}"):
            list(members(memoryview(whole), "a"))

    def test_an_empty_file_is_one_line(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"")
        with pytest.raises(DataError, match="is empty"):
            open_dataset(tmp_path / "a.tar")
