"""The article's claims: all verdicts in April and in November 2026, their numbers derived apart."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from genai_prices import Usage, calc_price

from lichen.atlas.catalogue.model import load as load_catalogue
from lichen.atlas.claims.check import Checked, ClaimSet, check, load
from lichen.errors import LichenError

APRIL = datetime(2026, 4, 30, 12, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 24, 12, tzinfo=UTC)
ARTICLE = load(load_catalogue())
THEN = {one.claim.id: one for one in check(ARTICLE, load_catalogue(as_of=APRIL.date()), APRIL)}
NOW = {one.claim.id: one for one in check(ARTICLE, load_catalogue(as_of=NOVEMBER.date()), NOVEMBER)}

S, P, C, U = "supported", "partly supported", "contradicted", "cannot be checked"

# Read off the sources by hand: what each claim deserves in April, and in November where that differs.
VERDICTS = {
    "timing-k2.6": (S,),
    "timing-v4": (S,),
    "k2.6-inherits": (S,),
    "v4-muon": (S,),
    "muon-origin": (C,),
    "muon-efficiency": (S,),
    "muon-stability": (C, P),
    "muon-memory": (S,),
    "muon-ascend": (U,),
    "licenses": (P,),  # V3's first weights came with use restrictions
    "closed-level-k2.6": (P,),  # BrowseComp and SWE-bench Pro yes, Terminal-Bench no
    "closed-level-v4-pro": (P,),
    "training-cost-k2.6": (U,),
    "training-cost-v4": (U,),
    "v3-parameters": (S,),
    "v3-active": (S,),
    "v3-context": (S,),
    "v3-cache": (S,),
    "k2.6-parameters": (C,),
    "k2.6-context": (S,),
    "k2.6-context-1m": (C,),
    "k2.6-scheduling": (P,),
    "k2.6-leads": (P,),  # with tools, not without
    "score-k2.6": (U,),
    "score-v4-flash": (U,),
    "score-v4-pro": (U,),
    "score-gemma": (U,),
    "score-qwen": (U,),
    "tie": (P,),  # in SWE-bench Verified
    "small-models": (P,),  # in MMLU-Pro, and in no other test
    "v4-flash-context": (S,),
    "v4-pro-context": (S,),
    "gemma-parameters": (S,),
    "gemma-context": (C,),
    "qwen-parameters": (S,),
    "qwen-context": (C,),
    "price-k2.6": (P,),
    "price-v4-flash": (C,),
    "price-v4-pro": (P,),
    "price-gemma": (C,),
    "price-qwen": (P,),
    "architecture-open": (P,),
    "west-single": (C,),
    "symbiosis": (U,),
    "homogenisation": (P,),
    "license-dependency": (P, S),  # Kimi K3's license
    "ceiling": (U,),
    "advice-agent": (C,),
    "advice-reasoning": (S, C),
    "advice-cost": (S, C),
    "advice-local": (S,),
    "local-hardware": (S,),
    "advice-long-term": (C,),  # V4 had left MLA
}


def test_every_claim_has_its_verdict_on_both_days() -> None:
    assert {name: one.verdict for name, one in THEN.items()} == {
        name: both[0] for name, both in VERDICTS.items()
    }
    assert {name: one.verdict for name, one in NOW.items()} == {
        name: both[-1] for name, both in VERDICTS.items()
    }


def test_every_verdict_has_evidence_and_its_kind() -> None:
    for one in (*THEN.values(), *NOW.values()):
        assert one.evidence
        reported = one.claim.check.kind in ("cited", "nothing")
        measured = one is NOW["muon-stability"]
        assert one.how == ("measured" if measured else one.claim.check.kind if reported else "computed")


def figures(one: Checked) -> list[float]:
    """The ratios 1/x in the evidence of a price claim."""
    return [float(line.rpartition("1/")[2]) for line in one.evidence if ": 1/" in line]


USES = [  # tokens in, of them cached, tokens out: the three standard workloads
    Usage(input_tokens=3000, output_tokens=1000),
    Usage(input_tokens=1000, output_tokens=3000),
    Usage(input_tokens=20000, cache_read_tokens=16000, output_tokens=1000),
]


def ratios(model: str, provider: str, at: datetime) -> list[float]:
    """How many times GPT-5.5 costs more, by genai-prices' own calculation."""
    found = []
    for usage in USES:
        theirs = calc_price(usage, "gpt-5.5", provider_id="openai", genai_request_timestamp=at).total_price
        ours = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
        found.append(float(theirs / ours))
    return found


@pytest.mark.parametrize(
    ("claim", "model", "provider"),
    [
        ("price-k2.6", "kimi-k2.6", "moonshotai"),
        ("price-v4-flash", "deepseek-v4-flash", "deepseek"),
        ("price-gemma", "google/gemma-4-31b-it", "novita"),
        ("price-qwen", "qwen/qwen3.6-27b", "novita"),
    ],
)
def test_price_ratios_are_those_of_genai_prices(claim: str, model: str, provider: str) -> None:
    assert figures(THEN[claim]) == pytest.approx(ratios(model, provider, APRIL), abs=0.051)


def test_a_price_with_peak_hours_is_given_for_both_levels() -> None:
    """V4 Pro in November: the day's two levels from genai-prices at 12:00 and 02:00 UTC, a Tuesday."""
    peak = NOVEMBER.replace(hour=2)
    calm, dear = (ratios("deepseek-v4-pro", "deepseek", at) for at in (NOVEMBER, peak))
    expected = [figure for pair in zip(calm, dear, strict=True) for figure in pair]
    assert figures(NOW["price-v4-pro"]) == pytest.approx(expected, abs=0.051)
    assert calm[0] == pytest.approx(2 * dear[0])


def test_the_list_price_that_nobody_paid_is_shown_beside_the_promotion() -> None:
    """1.74, 3.48 and 0.0145 USD (api-docs.deepseek.com, 26 April 2026) against 5, 30 and 0.5."""
    blend = (3 * 5 + 30) / (3 * 1.74 + 3.48)
    output = (5 + 3 * 30) / (1.74 + 3 * 3.48)
    agentic = (4 * 5 + 16 * 0.5 + 30) / (4 * 1.74 + 16 * 0.0145 + 3.48)
    listed = [line for line in THEN["price-v4-pro"].evidence if "deepseek-list" in line]
    assert [float(line.rpartition("1/")[2]) for line in listed] == pytest.approx(
        [blend, output, agentic], abs=0.051
    )


def test_parameters_are_counted_and_published_numbers_stand_beside_them() -> None:
    assert THEN["k2.6-parameters"].evidence[0] == "1.026 T parameters counted from its config"
    assert THEN["k2.6-parameters"].evidence[1].startswith("1 T parameters published")
    assert THEN["v3-parameters"].evidence[0].startswith("671 B")
    assert THEN["gemma-parameters"].evidence[0].startswith("30.7 B")
    assert THEN["qwen-parameters"].evidence[0].startswith("26.9 B")


def test_k26_is_v3_in_other_sizes_and_v4_is_not() -> None:
    """384 experts for 256, 64 heads for 128, one group for eight (the two config.json files)."""
    evidence = THEN["k2.6-inherits"].evidence
    assert evidence[:2] == ("attention: MLA", "feed-forward: Dense and MoE")
    for size in ("num_attention_heads 64 (of deepseek-v3 128)", "n_routed_experts 384 (of deepseek-v3 256)"):
        assert size in evidence[-1]
    assert "kv_lora_rank" not in evidence[-1]
    assert THEN["advice-long-term"].evidence[0] == "attention: Compressed, against MLA"


def test_the_cache_of_v3_beside_llama() -> None:
    """512 latent and 64 rotary numbers a layer (arXiv 2412.19437), 8 heads of 128 for keys and for values
    (arXiv 2407.21783), two bytes each, 131,072 tokens."""
    ours, theirs = 61 * (512 + 64) * 2 * 131072, 126 * 2 * 8 * 128 * 2 * 131072
    line = THEN["v3-cache"].evidence[0]
    assert f"{ours / 2**30:.2f} GiB" in line
    assert f"{theirs / 2**30:.2f} GiB" in line
    assert f"{ours / theirs:.3f} of it" in line


def test_the_state_of_muon_is_half_of_adamw_s_and_a_little() -> None:
    """One number in place of two, but for embedding and head of 129,280 x 7,168, of 1,573 billion."""
    rest = 2 * 129280 * 7168
    share = 0.5 + 0.5 * rest / 1573.0e9
    assert f"{share:.3f} of it" in THEN["muon-memory"].evidence[0]


def test_qwen_on_a_consumers_card() -> None:
    """26.9 billion weights of 4.5 bits; 16 layers of 4 heads of 256 for keys and values, in bf16."""
    line = THEN["local-hardware"].evidence[0]
    assert float(line.partition(" GB of weights (q4)")[0]) == pytest.approx(26.9 * 4.5 / 8, rel=1e-3)
    assert float(line.partition(" and ")[2].partition(" GB")[0]) * 1e9 == pytest.approx(
        131072 * 16 * 2 * 4 * 256 * 2, rel=0.02
    )
    assert "in 28.8 GB of rtx5090" in line


def test_what_nobody_published_is_not_computed() -> None:
    assert "gpt-5.5: GPU hours not published" in THEN["training-cost-v4"].evidence[0]


def test_a_finding_counts_from_its_day_on() -> None:
    january = datetime(2025, 1, 1, tzinfo=UTC)
    found = {one.claim.id: one for one in check(ARTICLE, load_catalogue(as_of=january.date()), january)}
    assert found["muon-origin"].verdict == C
    assert found["muon-stability"].verdict == U
    assert found["muon-stability"].evidence == ("nothing was known on 2025-01-01",)
    assert found["k2.6-parameters"].evidence == ("kimi-k2.6 came out on 2026-04-20",)


def verdict(kind: dict, at: datetime = APRIL) -> tuple[str, tuple[str, ...]]:
    """The verdict on one claim made up for the test."""
    content = {"id": "x", "statement": "x", "check": kind}
    claims = ClaimSet.model_validate(
        {"title": "", "source": "", "date": date(2026, 4, 30), "claims": [content]}
    )
    (one,) = check(claims, load_catalogue(as_of=at.date()), at)
    return one.verdict, one.evidence


def test_bounds_and_tolerances() -> None:
    k26 = {"kind": "context", "model": "kimi-k2.6"}
    assert verdict({**k26, "expected": 262000, "tolerance": 1000})[0] == S
    assert verdict({**k26, "expected": 262000, "tolerance": 100})[0] == C
    assert verdict({**k26, "at_least": 200000, "at_most": 262144})[0] == S
    assert verdict({**k26, "at_least": 262145})[0] == C


def test_a_score_of_a_named_test_and_of_one_that_is_not_named() -> None:
    score = {"kind": "score", "model": "kimi-k2.6", "expected": 80.2, "tolerance": 0.05}
    assert verdict({**score, "tests": ["SWE-bench Verified"]})[0] == S
    assert verdict({**score, "tests": ["SWE-bench Pro"]})[0] == C
    assert verdict({**score, "tests": ["SWE-bench Pro", "BrowseComp"]})[0] == U
    assert verdict({**score, "tests": ["SWE-bench Pro", "SWE-bench Verified"]})[0] == S
    assert verdict({**score, "tests": ["no such test"]}) == (U, ("nothing is known about it",))


def test_leading_is_among_the_models_of_the_day() -> None:
    leads = {"kind": "leads", "model": "kimi-k2.6", "tests": [{"name": "DeepSearchQA", "variant": "F1"}]}
    assert verdict(leads)[0] == S
    assert verdict(leads, NOVEMBER)[0] == C  # Kimi K3: 95.0


@pytest.mark.parametrize(
    ("check_line", "complaint"),
    [
        ("{kind: parameters, model: kimi-k26, expected: 1}", ".model: no model 'kimi-k26' in the catalogue"),
        (
            "{kind: parameter, model: kimi-k2.6, expected: 1}",
            ": no kind 'parameter'; did you mean parameters?",
        ),
        ("{kind: parameters, model: kimi-k2.6}", ": name either `expected` or `at_least` and `at_most`"),
        (
            "{kind: parameters, model: kimi-k2.6, at_least: 9, at_most: 3}",
            ": no number is at least 9 and at most 3",
        ),
        ("{kind: parameters, model: kimi-k2.6, expected: many}", ".expected: input should be a valid number"),
        ("{kind: score_gap, models: [kimi-k2.6, kimi], at_most: 1}", ".models.1: no model 'kimi'"),
        ("{kind: parameters, model: kimi-k2.6, expected: .nan}", ".expected: input should be a finite"),
        ("{kind: parameters, model: kimi-k2.6, at_least: .inf}", ".at_least: input should be a finite"),
        (
            "{kind: price_ratio, model: kimi-k2.6, providers: [moonshot], at_least: 2}",
            ".providers.0: no provider 'moonshot' of kimi-k2.6; did you mean moonshotai",
        ),
        (
            "{kind: cache_ratio, model: kimi-k2.6, reference: deepseek-v4-pro, context: 1000000, at_most: 1}",
            ".context: kimi-k2.6 reads at most 262,144 tokens, not 1,000,000",
        ),
        (
            "{kind: released, model: kimi-k2.6, since: 2026-05-01, until: 2026-04-01}",
            ": no day is between 2026-05-01 and 2026-04-01, which is earlier",
        ),
        (
            "{kind: cited, findings: [{verdict: supported, note: x, source: y, date: 2999-01-01}]}",
            ".findings.0.date: 2999-01-01 is in the future",
        ),
        (
            "{kind: fits, model: kimi-k2.6, hardware: h2000, context: 9}",
            ".hardware: no device 'h2000'; did you mean",
        ),
        (
            "{kind: fits, model: gemma-4-31b, hardware: h200, quant: int4, context: 9}",
            ": int4 is the storage of routed experts, and this model has none",
        ),
        ("{kind: fits, model: kimi-k2.6, hardware: h200, context: 300000}", ": context is 300000"),
        (
            "{kind: advice, scenario: chess, model: kimi-k2.6}",
            ".scenario: no scenario 'chess' in the rules; there are agent",
        ),
        ("{kind: cited, findings: []}", ".findings:"),
        ("{kind: cited, findings: [{verdict: maybe, note: x, source: y}]}", ".findings.0.verdict:"),
    ],
)
def test_a_mistake_in_a_claims_file_is_named_with_line_and_field(
    check_line: str, complaint: str, tmp_path
) -> None:
    path = tmp_path / "claims.yaml"
    head = "title: T\nsource: S\ndate: 2026-04-30\nclaims:\n  - id: a\n    statement: A.\n"
    path.write_text(f"{head}    check: {check_line}\n")
    with pytest.raises(LichenError) as refused:
        load(load_catalogue(), path)
    assert str(refused.value).startswith(f"{path}:7: claims.0.check{complaint}")


def test_an_article_of_the_future(tmp_path) -> None:
    path = tmp_path / "claims.yaml"
    check_line = "{kind: parameters, model: kimi-k2.6, expected: 1}"
    path.write_text(
        "title: T\nsource: S\ndate: 2999-01-01\n"
        f"claims:\n  - id: a\n    statement: A.\n    check: {check_line}\n"
    )
    with pytest.raises(LichenError, match=r"claims.yaml:3: date: 2999-01-01 is in the future"):
        load(load_catalogue(), path)


def test_two_claims_with_one_name(tmp_path) -> None:
    path = tmp_path / "claims.yaml"
    claim = "  - {id: a, statement: A., check: {kind: context, model: kimi-k2.6, expected: 1}}\n"
    path.write_text(f"title: T\nsource: S\ndate: 2026-04-30\nclaims:\n{claim}{claim}")
    with pytest.raises(LichenError, match=r":6: claims\.1\.id: 'a' is there twice"):
        load(load_catalogue(), path)
