"""Profiles: the sizes of an engine, from text and by default, and what contradicts a bundle."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adexport_runtime import Bundle, Manifest, RequestError
from adexport_runtime.graph_io import engine_inputs, kind_of
from adexport_runtime.manifest import parse_manifest
from adexport_runtime.profiles import (
    Profile,
    Range,
    default_profiles,
    kinds_of_sizes,
    parse_profiles,
    profile_problems,
)

KINDS = ("batch", "seq", "rows", "rank")


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def generating(manifest: Manifest, positions: int = 4000) -> Manifest:
    """The same bundle as if it generated, by its manifest."""
    data = manifest.model_dump(mode="json")
    data["base"] |= {"task": "text-generation", "max_positions": positions}
    data["inputs"] = [spec for spec in data["inputs"] if spec["name"] != "token_type_ids"]
    data["outputs"] = [{"name": "logits", "dtype": "fp32", "shape": ["batch", "seq", 97]}]
    data["adapter_ids"], data["guards"], data["slot_rows"] = None, None, "batch"
    data["generation"] = {
        "lengths": "lengths",
        "past_lengths": "past_lengths",
        "logits_at": "logits_at",
        "caches": [
            {
                "past_key": "past_key_0",
                "past_value": "past_value_0",
                "present_key": "present_key_0",
                "present_value": "present_value_0",
                "kv_heads": 2,
                "size": 8,
                "window": None,
            }
        ],
        "eos_ids": [1],
    }
    return parse_manifest(json.dumps(data))


class TestRange:
    @pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, 1, 1), (1, 1, 2**31)])
    def test_is_ordered_and_positive(self, sizes: tuple[int, int, int]) -> None:
        low, usual, high = sizes
        with pytest.raises(ValidationError):
            Range(min=low, opt=usual, max=high)


class TestDefaults:
    def test_an_encoder(self, manifest: Manifest) -> None:
        (profile,) = default_profiles(manifest)
        assert str(profile) == "batch=1:8:32,seq=1:40:40,rows=1:17:65,rank=1:16:16"
        assert profile_problems(profile, manifest) == []

    def test_a_decoder_has_one_for_steps_and_one_for_prompts(self, manifest: Manifest) -> None:
        decoder = generating(manifest)
        steps, prompts = default_profiles(decoder)
        assert (str(steps.sizes["seq"]), str(steps.sizes["wanted"])) == ("1:1:1", "1:1:1")
        assert prompts.sizes["seq"].max > 1
        assert prompts.sizes["batch"].opt == 1
        for profile in (steps, prompts):
            assert profile_problems(profile, decoder) == []
            assert "rows" not in profile.sizes  # slots have a row for each of the batch


class TestShapes:
    def test_of_every_input(self, manifest: Manifest) -> None:
        (profile,) = default_profiles(manifest)
        tensors = {tensor.name: tensor for tensor in engine_inputs(manifest)}
        lora = tensors["encoder.layer.0.output.dense.lora_A"]
        assert profile.shapes(lora) == ((1, 48, 1), (17, 48, 16), (65, 48, 16))
        assert profile.shapes(tensors["input_ids"]) == ((1, 1), (8, 40), (32, 40))

    def test_what_a_profile_does_not_hold(self, manifest: Manifest) -> None:
        (profile,) = parse_profiles(["batch=4:8:16"], manifest)
        tensors = {tensor.name: tensor for tensor in engine_inputs(manifest)}
        assert profile.shapes(tensors["adapter_ids"]) == ((4,), (8,), (16,))
        assert profile.misfits(tensors["input_ids"], (4, 40)) == []
        assert profile.misfits(tensors["input_ids"], (1, 41)) == [
            ("batch", 1, profile.sizes["batch"]),
            ("seq", 41, profile.sizes["seq"]),
        ]
        lora = tensors["encoder.layer.0.output.dense.lora_A"]
        assert profile.misfits(lora, (2, 47, 1))[0][:2] == ("48", 47)

    def test_kinds(self) -> None:
        assert kind_of("encoder.layer.0.output.dense.rank") == "rank"
        assert kind_of("batch") == "batch"


class TestParse:
    def test_what_is_left_out_has_defaults(self, manifest: Manifest) -> None:
        assert parse_profiles([], manifest) == default_profiles(manifest)
        (profile,) = parse_profiles([" seq = 4 "], manifest)
        assert str(profile) == "batch=1:8:32,seq=4:4:4,rows=1:17:65,rank=1:16:16"

    def test_every_culprit_is_named(self, manifest: Manifest) -> None:
        texts = ["batch=2:1:4,labels=3,seq=1:2:41", "", "rank=1,rank=2", "rows=0:1:2", "seq=1:2"]
        with pytest.raises(RequestError) as caught:
            parse_profiles(texts, manifest)
        assert [problem.subject for problem in caught.value.problems] == [
            "batch=2:1:4",
            "labels=3",
            "(empty)",
            "rank=2",
            "rows=0:1:2",
            "seq=1:2",
            "seq=1:2:41",
        ]

    @pytest.mark.parametrize("number", [str(2**31), "9" * 5000, "0" * 5000, "\u0662"])
    def test_a_number_that_is_no_size(self, manifest: Manifest, number: str) -> None:
        assert parse_profiles([f"batch={2**31 - 1}"], manifest)
        with pytest.raises(RequestError, match="1 to 2147483647") as caught:
            parse_profiles([f"batch=1:1:{number}"], manifest)
        assert len(str(caught.value)) < 400

    def test_of_a_decoder(self, manifest: Manifest) -> None:
        decoder = generating(manifest)
        (steps,) = parse_profiles(["batch=2:4:8,seq=1"], decoder)
        assert str(steps.sizes["batch"]) == "2:4:8"
        assert str(steps.sizes["wanted"]) == "1:1:1"

    @pytest.mark.parametrize(
        ("text", "culprit"),
        [
            ("seq=1:8:64,room=1:8:32", "room=1:8:32"),
            ("batch=1:4:8,rows=1:4:8", "rows=1:4:8"),
            ("room=1:2:5000", "room=1:2:5000"),
        ],
    )
    def test_sizes_that_hang_together(self, manifest: Manifest, text: str, culprit: str) -> None:
        with pytest.raises(RequestError) as caught:
            parse_profiles([text], generating(manifest))
        assert [problem.subject for problem in caught.value.problems] == [culprit]

    def test_a_profile_lacks_a_kind(self, manifest: Manifest) -> None:
        profile = Profile(sizes={"batch": Range(min=1, opt=1, max=1)})
        problems = profile_problems(profile, manifest)
        assert [problem.subject for problem in problems] == ["seq", "rows", "rank"]

    @given(
        st.dictionaries(
            st.sampled_from(KINDS),
            st.lists(st.integers(1, 16), min_size=3, max_size=3).map(sorted),
            min_size=1,
        )
    )
    def test_what_is_written_is_read_again(self, manifest: Manifest, sizes: dict[str, list[int]]) -> None:
        text = ",".join(f"{kind}={low}:{usual}:{high}" for kind, (low, usual, high) in sizes.items())
        (profile,) = parse_profiles([text], manifest)
        assert parse_profiles([str(profile)], manifest) == (profile,)
        for kind, (low, usual, high) in sizes.items():
            assert profile.sizes[kind] == Range(min=low, opt=usual, max=high)
        assert set(profile.sizes) == set(kinds_of_sizes(manifest))

    @given(st.text(st.sampled_from(string.digits + ":,=-. ²batchseqrank"), max_size=30))
    def test_any_text_is_a_profile_or_refused(self, manifest: Manifest, text: str) -> None:
        try:
            profiles = parse_profiles([text], manifest)
        except RequestError as error:
            assert error.problems
        else:
            assert profile_problems(profiles[0], manifest) == []
