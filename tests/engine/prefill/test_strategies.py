"""Strategies by name: what each name builds, and the sentence for what is none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from russet.engine.errors import InvalidOptionError, PredictorError
from russet.engine.prefill.kv_prediction import KVPrediction
from russet.engine.prefill.predictor import Predictor
from russet.engine.prefill.predictor_folder import save_predictor
from russet.engine.prefill.pruning import Linear, Staged
from russet.engine.prefill.strategies import STRATEGIES, find, parse
from russet.models import catalog, shipped
from russet.models.loading import load_decoder

GOLDEN = Path(__file__).parents[2] / "golden"
DOCS = Path(__file__).parents[3] / "docs" / "prefill.md"


@pytest.mark.parametrize(
    ("text", "name", "exact"),
    [
        ("exact", "exact", True),
        ("lazyllm", "lazyllm", False),
        ("lazyllm:0.5", "lazyllm", False),
        ("specprefill", "specprefill", False),
        ("specprefill:1", "specprefill", False),
        ("superposition", "superposition", False),
        ("superposition:3", "superposition", False),
    ],
)
def test_a_name_builds_its_strategy(text: str, name: str, exact: bool) -> None:
    strategy = parse(text)
    assert (strategy.name, strategy.exact) == (name, exact)


def test_the_value_behind_the_colon_is_the_setting() -> None:
    assert parse("specprefill:0.4").keep == parse("specprefill", keep=0.4).keep == 0.4  # type: ignore[attr-defined]
    assert parse("superposition:4").keep == parse("superposition", keep=4.0).keep == 4  # type: ignore[attr-defined]
    assert parse("lazyllm:0.4").schedule == parse("lazyllm", keep=0.4).schedule  # type: ignore[attr-defined]
    assert parse("lazyllm:0.4").schedule != parse("lazyllm:0.5").schedule  # type: ignore[attr-defined]


def test_lazyllm_takes_a_schedule_too() -> None:
    assert parse("lazyllm:0.6-0.1").schedule == Linear(0.6, 0.1)  # type: ignore[attr-defined]
    assert parse("lazyllm:0.3@0.4").schedule == Staged({0.4: 0.3})  # type: ignore[attr-defined]


def test_a_draft_is_a_share_of_the_layers_or_a_model(tiny_folder: Path) -> None:
    assert parse("specprefill", draft="0.25").draft == 0.25  # type: ignore[attr-defined]
    draft = parse("specprefill:0.3", draft=str(tiny_folder)).draft  # type: ignore[attr-defined]
    assert draft.config.vocab_size == 259


def test_a_document_cache_goes_to_superposition(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUSSET_PREFIX_CACHE_BYTES", "5000")
    documents = parse("superposition:2", documents=tmp_path).documents  # type: ignore[attr-defined]
    assert (documents.folder, documents.max_bytes) == (tmp_path, 5000)
    assert parse("superposition:2", documents=None).documents is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("lazylm", {}, "There is no prefill strategy 'lazylm'; did you mean lazyllm? There are exact, lazyllm, "),
        ("quick", {}, "There is no prefill strategy 'quick'; there are exact, lazyllm, kv-prediction, specprefill, "),
        ("", {}, "There is no prefill strategy ''; there are exact, "),
        ("exact:1", {}, "'exact:1' is no prefill strategy; exact stands alone."),
        ("lazyllm:", {}, "'lazyllm:' is no prefill strategy; write lazyllm:KEEP or lazyllm."),
        ("lazyllm:0.5", {"keep": 0.4}, "'lazyllm:0.5' names its keep already, but 0.4 was given too; drop one."),
        ("lazyllm:half", {}, "keep is half; it is a share of the prompt, above 0 and at most 1."),
        ("lazyllm:0", {}, "keep is 0; it is a share of the prompt, above 0 and at most 1."),
        ("specprefill:nan", {}, "keep is nan; it is a share of the prompt, above 0 and at most 1."),
        ("superposition:1.5", {}, "keep is 1.5; for superposition it is a number of documents, 1 or more."),
        ("superposition", {"keep": float("inf")}, "keep is inf; for superposition it is a number of documents, 1 or "),
        (
            "exact",
            {"keep": 0.5},
            "exact prefill takes no keep; it is a setting of lazyllm, kv-prediction, specprefill, superposition.",
        ),
        ("lazyllm", {"draft": "0.5"}, "lazyllm prefill takes no draft; it is a setting of specprefill."),
        ("specprefill", {"draft": "1.5"}, "draft is 1.5; a share of the model's layers is above 0 and at most 1."),
        ("kv-prediction", {}, "kv-prediction needs a predictor; give the folder of one."),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(text: str, settings: dict, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{re.escape(message)}"):
        parse(text, **settings)


def test_a_folder_that_is_no_predictor_is_told(tmp_path: Path) -> None:
    with pytest.raises(PredictorError):
        parse(f"kv-prediction:{tmp_path}")
    with pytest.raises(InvalidOptionError, match="keep is 2; it is a share of the prompt, from 0 to 1"):
        parse(f"kv-prediction:{tmp_path}", keep="2")
    with pytest.raises(
        InvalidOptionError, match=r"There is no predictor nosuch: give the folder of one, or a name such"
    ):
        parse("kv-prediction:nosuch")


def test_a_predictor_of_the_repository_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.PREDICTORS, "half", "a test")
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(InvalidOptionError, match="The predictor half comes with a clone of the repository"):
        parse("kv-prediction:half")
    save_predictor(Predictor.identity(load_decoder(GOLDEN / "llama", "float32")), tmp_path / "half")
    strategy = parse("kv-prediction", predictor="half")
    assert isinstance(strategy, KVPrediction) and strategy.folder == tmp_path / "half"
    assert KVPrediction("half").folder == tmp_path / "half"
    with pytest.raises(InvalidOptionError, match="The predictor is of type NoneType; give its folder or its name"):
        KVPrediction(None)  # type: ignore[arg-type]
    strategy = parse("kv-prediction:half@0.15")
    assert isinstance(strategy, KVPrediction) and (strategy.folder, strategy.keep) == (tmp_path / "half", 0.15)
    with pytest.raises(InvalidOptionError, match=r"'half@0\.15' names its keep already, but 0\.3 was given too"):
        parse("kv-prediction:half@0.15", keep=0.3)
    with pytest.raises(InvalidOptionError, match=r"'half@' has no share behind its @; write half@0\.15 or half\."):
        parse("kv-prediction:half@")
    with pytest.raises(InvalidOptionError, match="keep is much; it is a share of the prompt"):
        parse("kv-prediction:half@much")
    (tmp_path / "half").rename(tmp_path / "at@0.5")
    strategy = parse(f"kv-prediction:{tmp_path / 'at@0.5'}", keep=0.2)
    assert isinstance(strategy, KVPrediction) and (strategy.folder, strategy.keep) == (tmp_path / "at@0.5", 0.2)


def test_lossy_strategies_name_their_price_and_exact_has_none() -> None:
    assert [name for name, strategy in STRATEGIES.items() if not strategy.price] == ["exact"]
    assert find("exact").settings == ()


def test_the_page_on_strategies_has_them_in_this_order() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`([\w-]+)`\]", text, re.MULTILINE) == list(STRATEGIES)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    named = [heading.lower().replace(" ", "-") for heading in headings]
    assert [name for name in named if name in STRATEGIES] == list(STRATEGIES)


def test_the_list_is_there_without_mlx() -> None:
    script = "import sys; import russet.engine.prefill.strategies; assert not {'mlx', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
