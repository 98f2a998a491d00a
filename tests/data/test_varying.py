"""What is drawn anew each time an image is served."""

import collections
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lgm import config as schema
from lgm.cli import main
from lgm.data import batches, open_data, open_images
from lgm.data.buckets import micro_conditioning
from lgm.data.decoding import decode
from lgm.data.varying import View, arranged, caption, generator, view
from lgm.train import feeding

MODEL = dict(family="mmdit", channels=32, patch_size=1, width=16, depth=2, heads=2, text_dim=16, pooled_dim=16)
ENCODER = dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=2, max_length=24)


def config(**changes):
    data = dict(latents="step", resolution=8) | changes.pop("data", {})
    return schema.from_dict(dict(name="x", batch_size=4, total_images=8, model=MODEL, text=dict(encoder=ENCODER),
                                 data=data) | changes)  # fmt: skip


def told_of(config):
    """A system that reads a caption's letters and is told sizes, as SDXL is."""
    return SimpleNamespace(
        config=config, conditioning=SimpleNamespace(micro=6),
        tokenize=lambda texts: (np.array([list(text.ljust(40)[:40].encode()) for text in texts]), np.ones(len(texts))),
    )


def served(config, process=0, processes=1):
    """The batches of a config as a training run makes them."""
    images, _ = open_data(config.data)
    buckets = feeding.buckets_of(config, images)
    system = told_of(config)
    size = lambda index: None if buckets is None else buckets.size(index)
    return batches(
        {}, image=lambda i, serving: images.image(i, size(i), feeding.view_of(config, serving)), serving=True,
        derived=feeding.conditioning(system, feeding.captions_of(config, images.rows),
                                     feeding.told_sizes(system, images, buckets)),
        groups=None if buckets is None else buckets.groups, length=len(images), batch_size=config.batch_size,
        parts=images.parts, weights=config.data.weights, seed=config.seed, process_index=process,
        process_count=processes, threads=2,
    )  # fmt: skip


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture
def photos(folder):
    """Images with several captions each, of tags."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"tagged": [f"a{i}, b, c, d, e", f"z{i}, y"], "short": f"s{i}"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("more", [{}, {"buckets": 2}])
def test_all_of_it_is_the_same_on_any_number_of_processes_and_after_resuming(photos, more, mixes):
    source = str(photos)
    if mixes:
        source = dict(few=dict(source=source, weight=1, where={"n": "<2"}), all=dict(source=source, weight=3.5))
    made = config(data=dict(source=source, flip=True, random_crop=True, caption=("tagged", "short"),
                            tags=dict(keep=1, dropout=0.3), resolution=(6, 8), **more))  # fmt: skip
    whole = served(made)
    wanted = [next(whole) for _ in range(6)]
    for count in (2, 4):
        parts = [served(made, i, count) for i in range(count)]
        for batch in wanted:
            found = [next(part) for part in parts]
            assert same({key: np.concatenate([part[key] for part in found]) for key in batch}, batch)
    states = served(made)
    for n, batch in enumerate(wanted):
        resumed = served(made)
        resumed.set_state(json.loads(json.dumps(states.get_state())))
        assert same(next(resumed), batch) and same(next(states), wanted[n])
    words = [bytes(row.tolist()).decode().strip() for batch in wanted for row in batch["tokens"].astype(np.uint8)]
    said = collections.Counter(text[0] for text in words)
    assert set(said) == {"a", "z", "s"} and any(text.startswith("a") and text.count(",") < 4 for text in words)
    plain = config(data=dict(source=source, caption="short", resolution=(6, 8), **more))
    theirs = served(plain)
    for batch in wanted:  # which images are served is no matter of what is done to them
        np.testing.assert_array_equal(batch["index"], next(theirs)["index"])


def test_pixels_and_words_are_drawn_apart(photos):
    told = dict(source=str(photos), caption=("tagged", "short"))
    one, other = served(config(data=told)), served(config(data=dict(**told, flip=True)))
    for _ in range(4):
        ours, theirs = next(one), next(other)
        assert np.array_equal(ours["tokens"], theirs["tokens"])
        turned = [np.array_equal(a, b[:, ::-1]) for a, b in zip(ours["image"], theirs["image"], strict=True)]
        as_it_is = [np.array_equal(a, b) for a, b in zip(ours["image"], theirs["image"], strict=True)]
        assert all(a != b for a, b in zip(turned, as_it_is, strict=True))


def test_sdxl_is_told_the_true_cut():
    """A picture whose pixels say where they are, so large that its shorter side fits without scaling."""
    rows, columns = np.mgrid[:8, :20].astype(np.uint8)
    whole = np.stack([rows, columns, 0 * rows], -1)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "PNG")
    seen, flipped = collections.Counter(), 0
    for serving in range(300):
        found = view(3, serving, True, True)
        pixels = decode(file.getvalue(), (8, 8), "x", found.centre((8, 20), (8, 8)))
        pixels = pixels[:, ::-1] if found.flipped else pixels
        height, width, top, left, *target = micro_conditioning([[8, 20]], [[8, 8]], [found])[0].astype(int)
        assert (height, width, top, target) == (8, 20, 0, [8, 8])
        mirrored = whole[:, ::-1] if found.flipped else whole
        np.testing.assert_array_equal(pixels, mirrored[top : top + 8, left : left + 8])
        seen[found.corner((8, 20), (8, 8))[1]] += 1
        flipped += found.flipped
    assert set(seen) == set(range(13)) and max(seen.values()) < 45  # 23 each, with deviation 4.6
    assert abs(flipped - 150) < 52  # six deviations
    assert micro_conditioning([[8, 21]], [[8, 8]], [View(flipped=True)])[0, 3] == 7  # of 13 to spare, 6 on the left


def test_an_autoencoder_sees_half_of_its_images_flipped():
    from lgm.train.autoencode import mirrored

    pixels, servings = np.arange(200 * 2 * 3 * 3, dtype=np.int64).reshape(200, 2, 3, 3), np.arange(7, 207)
    made = config(model=dict(family="autoencoder"), text=None, data=dict(flip=True))
    seen = mirrored(pixels, made, servings)
    turned = np.array([view(0, int(number), True, False).flipped for number in servings])
    np.testing.assert_array_equal(seen[turned], pixels[turned][:, :, ::-1])
    np.testing.assert_array_equal(seen[~turned], pixels[~turned])
    assert abs(turned.sum() - 100) < 43 and mirrored(pixels, config(), servings) is pixels


def test_tags_stay_or_move_or_go():
    text, orders, counts = "one girl,red hat, smile , sea", set(), []
    for serving in range(400):
        tags = arranged(text, 1, True, 0.25, generator(0, serving, 2)).split(", ")
        assert tags[0] == "one girl" and set(tags) <= {"one girl", "red hat", "smile", "sea"}
        counts.append(len(tags) - 1)
        if len(tags) == 4:
            orders.add(tuple(tags))
    assert len(orders) == 6 and abs(np.mean(counts) - 2.25) < 6 * (3 * 0.25 * 0.75 / 400) ** 0.5
    assert arranged(text, 1, False, 0.0, generator(0, 0, 2)) == "one girl, red hat, smile, sea"
    assert {arranged("a, b", 0, True, 0.99, generator(0, i, 2)) for i in range(50)} == {"a", "b"}
    assert arranged("a", 3, True, 0.9, generator(0, 0, 2)) == "a" and arranged(" , ", 0, True, 0.0, generator(0, 0, 2))
    assert collections.Counter(caption("abc", 0, i) for i in range(300)).most_common()[-1][1] > 50  # of 100, 8 each


def test_a_list_of_captions_or_several_fields_and_the_first_stands_for_them(photos):
    images = open_images(str(photos), caption=("short", "tagged"))
    assert images.captions[:2] == ["s0", "s1"] and images.rows.choices(np.array([1])) == [["s1", "a1, b, c, d, e",
                                                                                             "z1, y"]]
    assert open_images(str(photos), caption="tagged").captions[2] == "a2, b, c, d, e"
    lines = (photos / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"text": ["one", "two"]} for line in lines]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert open_images(str(photos)).rows.choices(np.array([0])) == [["one", "two"]]
    with pytest.raises(ValueError, match=r"config.data.caption=\('short', 'tags_'\): .* did you mean 'tags'") as caught:
        open_images(str(photos), caption=("short", "tags_"))
    assert "\n" not in str(caught.value)
    (photos / "metadata.jsonl").write_text(json.dumps(rows[0] | {"text": ["one", " "]}))
    with pytest.raises(ValueError, match="line 1 has an empty text"):
        open_images(str(photos))


@pytest.mark.parametrize(("change", "line"), [
    (dict(data=dict(latents="memory", random_crop=True)), "config.data.random_crop=True needs config.data.latents="),
    (dict(data=dict(latents="memory", random_crop=True, cache="kept")), "config.data.random_crop=True does not"),
    (dict(data=dict(posterior="sample", latents="memory")), "config.data.posterior='sample' needs config.data."),
    (dict(data=dict(caption=())), r"config.data.caption=\(\) should name a field, or several once each"),
    (dict(data=dict(caption=("a", "a"))), "should name a field, or several once each"),
    (dict(data=dict(tags=dict(keep=-1))), "config.data.tags.keep=-1 must be at least 0"),
    (dict(data=dict(tags=dict(dropout=1.0))), "config.data.tags.dropout=1.0 must lie in"),
    (dict(data=dict(tags=dict(kept=1))), "config.data.tags.kept is an unknown key; did you mean 'keep'"),
    (dict(data=dict(tags={}), text=None, model=dict(family="dit", channels=32, width=16, depth=2, heads=2)),
     "config.data.tags arranges captions that a denoiser reads"),
    (dict(data=dict(tags={}), loss=dict(name="reflow", teacher=dict(workdir="w"))), "config.data.tags does not go wi"),
    (dict(model=dict(family="autoencoder"), text=None, data=dict(random_crop=True)), "learns from random crops of con"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(change, line):
    with pytest.raises(ValueError, match=line) as caught:
        config(**change)
    assert "\n" not in str(caught.value)


def test_encoding_refuses_what_a_cache_cannot_hold(tmp_path, capsys):
    """Before anything is encoded, not when the cache is trained from."""
    words = ["encode", "--config=configs/flags.py", f"--out={tmp_path / 'kept'}", "--config.data.latents=step"]
    assert main([*words, "--config.data.random_crop=True"]) == 2
    said = ("lgm encode: config.data.random_crop=True does not go with lgm encode, which keeps each image cut in the "
            "middle; set it to False\n")
    assert capsys.readouterr().err == said
    assert not (tmp_path / "kept").exists()


def test_runs_that_share_a_program_take_no_images_made_anew():
    from lgm.scaling.together import open_group

    with pytest.raises(ValueError, match="config.data.flip asks for what runs .* together .*; set together=1"):
        open_group([SimpleNamespace(configs=[config(data=dict(flip=True))])], "vmap", None)
