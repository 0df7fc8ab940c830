"""Names, globs, shorthand, and what a misspelt one is answered with (trap 2)."""

from typing import Any

import pytest

from hooked_whisper.errors import HookDisabledError, HookNameError
from hooked_whisper.hooks.names import expand_shorthand, is_shorthand, match_names

NAMES = [
    "encoder.hook_embed",
    *(
        f"encoder.blocks.{layer}.{rest}"
        for layer in range(2)
        for rest in ("ln1.hook_scale", "ln2.hook_scale", "attn.hook_pattern", "hook_resid_post")
    ),
    "encoder.ln_final.hook_scale",
    "decoder.hook_embed",
    *(
        f"decoder.blocks.{layer}.{rest}"
        for layer in range(11)
        for rest in ("attn.hook_pattern", "cross_attn.hook_pattern", "mlp.hook_pre", "hook_mlp_out")
    ),
    "decoder.hook_logits",
]
DISABLED = {"decoder.blocks.0.attn.hook_result": "use_attn_result"}


class TestMatchNames:
    @pytest.mark.parametrize(
        ("names_filter", "expected"),
        [
            pytest.param("decoder.hook_logits", ["decoder.hook_logits"], id="name"),
            pytest.param("*.hook_embed", ["encoder.hook_embed", "decoder.hook_embed"], id="glob"),
            pytest.param(
                "decoder.blocks.1.*pattern",
                ["decoder.blocks.1.attn.hook_pattern", "decoder.blocks.1.cross_attn.hook_pattern"],
                id="layer 1 is not layer 10",
            ),
            pytest.param(
                "encoder.blocks.[01].hook_resid_pos?",
                ["encoder.blocks.0.hook_resid_post", "encoder.blocks.1.hook_resid_post"],
                id="range and question mark",
            ),
            pytest.param(
                ["decoder.hook_logits", "encoder.hook_emb*"],
                ["encoder.hook_embed", "decoder.hook_logits"],
                id="list in the model's order",
            ),
            pytest.param(
                ("decoder.hook_logits", "decoder.hook_logits"), ["decoder.hook_logits"], id="tuple"
            ),
            pytest.param({"decoder.hook_embed"}, ["decoder.hook_embed"], id="set"),
            pytest.param(
                lambda name: name.endswith("logits"), ["decoder.hook_logits"], id="function"
            ),
            pytest.param(
                ("decoder", 10, "pattern", "cross_attn"),
                ["decoder.blocks.10.cross_attn.hook_pattern"],
                id="shorthand",
            ),
            pytest.param(
                [("encoder", 0, "pattern"), "decoder.hook_logits", lambda name: "ln_final" in name],
                [
                    "encoder.blocks.0.attn.hook_pattern",
                    "encoder.ln_final.hook_scale",
                    "decoder.hook_logits",
                ],
                id="list of all kinds",
            ),
            pytest.param(None, NAMES, id="everything"),
        ],
    )
    def test_chooses(self, names_filter: Any, expected: list[str]) -> None:
        assert match_names(names_filter, NAMES, DISABLED) == expected

    @pytest.mark.parametrize(
        ("names_filter", "message"),
        [
            pytest.param(
                "decoder.blocks.1.cros_attn.hook_pattern",
                r"no hook 'decoder\.blocks\.1\.cros_attn\.hook_pattern'\. "
                r"Nearest: decoder\.blocks\.1\.cross_attn\.hook_pattern",
                id="misspelt",
            ),
            pytest.param(
                "decoder.blocks.3.hook_mlp_outt",
                "Nearest: .*blocks.3.hook_mlp_out",
                id="one letter",
            ),
            pytest.param(
                "encoder.blocks.2.hook_resid_post",
                r"encoder blocks 0 to 1\. List names with model\.hook_names\(\"encoder\.\*\"\)",
                id="layer too high",
            ),
            pytest.param(
                "decoder.blocks.11.*",
                "no hook matches .*decoder blocks 0 to 10",
                id="glob of a layer",
            ),
            pytest.param("*.hook_patern", r"no hook matches '\*\.hook_patern'", id="empty glob"),
            pytest.param("pattern", "Nearest: encoder.blocks.0.attn.hook_pattern", id="last part"),
            pytest.param("blocks.0.hook_resid_post", "Nearest: .*hook_resid_post", id="no stack"),
            pytest.param("", "no hook ''", id="empty name"),
            pytest.param(lambda name: False, "matches none of the 5", id="function"),
            pytest.param([], "empty list", id="empty list"),
            pytest.param(
                ["decoder.hook_logits", "decoder.hook_logit"], "hook_logits", id="in a list"
            ),
            pytest.param(["decoder.hook_logits", 3], "3 is no hook name", id="number in a list"),
            pytest.param(7, "7 is no hook name", id="number"),
            pytest.param(
                ("decoder", 11, "pattern"), "decoder blocks 0 to 10", id="shorthand's layer"
            ),
            pytest.param(
                ("encoder", 0, "patern"), "Nearest: .*hook_pattern", id="shorthand's name"
            ),
            pytest.param(
                ("encoder", 0, "pattern", "cross_attn"),
                "no hook 'encoder.blocks.0.cross_attn.hook_pattern'",
                id="shorthand's part",
            ),
            pytest.param(("encoder", 0, 1), "is no hook shorthand", id="shorthand's form"),
            pytest.param(("encoder", 0, "scale"), r"Add the part: .*'ln1', 'ln2'", id="ambiguous"),
        ],
    )
    @pytest.mark.usefixtures("without_shape_checks")
    def test_trap_2_what_matches_nothing_is_refused(self, names_filter: Any, message: str) -> None:
        with pytest.raises(HookNameError, match=message):
            match_names(names_filter, NAMES, DISABLED)

    @pytest.mark.parametrize(
        "names_filter",
        ["decoder.blocks.0.attn.hook_result", "*.hook_result", ("decoder", 0, "result")],
        ids=["name", "glob", "shorthand"],
    )
    def test_trap_3_a_hook_behind_a_flag_names_the_flag(self, names_filter: Any) -> None:
        with pytest.raises(HookDisabledError, match=r"set_use_attn_result\(True\)"):
            match_names(names_filter, NAMES, DISABLED)

    def test_a_glob_that_also_matches_other_hooks_leaves_out_those_behind_a_flag(self) -> None:
        found = match_names("decoder.blocks.0.attn.*", NAMES, DISABLED)
        assert found == ["decoder.blocks.0.attn.hook_pattern"]

    def test_is_a_key_error_that_reads_as_a_sentence(self) -> None:
        with pytest.raises(KeyError, match="Nearest") as caught:
            match_names("decoder.hook_logit", NAMES)
        assert str(caught.value).startswith("no hook 'decoder.hook_logit'. Nearest: ")


class TestShorthand:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (("encoder", 1, "resid_post"), "encoder.blocks.1.hook_resid_post"),
            (("encoder", 1, "hook_resid_post"), "encoder.blocks.1.hook_resid_post"),
            (("encoder", -1, "resid_post"), "encoder.blocks.1.hook_resid_post"),
            (("decoder", -11, "pattern"), "decoder.blocks.0.attn.hook_pattern"),
            (("decoder", 1, "pattern"), "decoder.blocks.1.attn.hook_pattern"),
            (("decoder", 1, "pattern", "attn"), "decoder.blocks.1.attn.hook_pattern"),
            (("decoder", 1, "pattern", "cross_attn"), "decoder.blocks.1.cross_attn.hook_pattern"),
            (("decoder", 2, "pre"), "decoder.blocks.2.mlp.hook_pre"),
            (("decoder", 2, "pre", "mlp"), "decoder.blocks.2.mlp.hook_pre"),
            (("encoder", 0, "scale", "ln2"), "encoder.blocks.0.ln2.hook_scale"),
            (("encoder", "scale", "ln_final"), "encoder.ln_final.hook_scale"),
            (("encoder", "scale"), "encoder.ln_final.hook_scale"),
            (("decoder", "logits"), "decoder.hook_logits"),
            (("encoder", "embed"), "encoder.hook_embed"),
        ],
        ids=str,
    )
    def test_expands(self, key: tuple[Any, ...], expected: str) -> None:
        assert expand_shorthand(key, NAMES) == expected

    @pytest.mark.parametrize("layer", [2, 99, -3, -9], ids=str)
    def test_refuses_a_layer_out_of_range(self, layer: int) -> None:
        with pytest.raises(HookNameError, match="encoder blocks 0 to 1"):
            expand_shorthand(("encoder", layer, "resid_post"), NAMES)

    @pytest.mark.parametrize(
        "key",
        [("resid_post", 0), "encoder", ("encoder",), ["encoder", 0, "pattern"], 3],
        ids=str,
    )
    def test_other_things_are_no_shorthand(self, key: Any) -> None:
        assert not is_shorthand(key)
