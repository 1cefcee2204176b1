"""autoenc_study.py against finite differences, plain loops and exhaustive enumeration."""

import ast
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

import autoenc_study as study
from inputcodes import stats
from inputcodes.configurator import UserError

ROOT = Path(study.__file__).parent
TINY = study.PROTOCOLS["trained"]._replace(
    train_sequences=300, heldout_sequences=100, min_epochs=10, max_epochs=10
)


# --- Imports ---


@pytest.mark.parametrize(
    "name", ["autoenc_study.py", "inputcodes/stats.py", "inputcodes/configurator.py"]
)
def test_only_the_standard_library_is_imported(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module]
        for module in modules:
            assert module.split(".")[0] in sys.stdlib_module_names | {"inputcodes"}, module


def test_importing_needs_no_installed_package():
    # -S leaves out site-packages, so that an import hidden from the syntax tree fails as well.
    command = [sys.executable, "-S", "-c", "import autoenc_study"]
    subprocess.run(command, cwd=ROOT, check=True)


# --- Arithmetic and gradients ---


@pytest.fixture(params=["distance", "sumprod"])
def kernel(request, monkeypatch):
    """Both ways to multiply, whichever the running Python prefers."""
    if request.param == "distance":
        monkeypatch.setattr(study, "SUMPROD", None)
    elif study.SUMPROD is None:
        monkeypatch.setattr(study, "SUMPROD", lambda x, y: sum(map(float.__mul__, x, y)))


def test_dots_is_the_matrix_product(kernel):
    rng = Random(1)
    a, b = study.gaussian(rng, 5, 7, 3.0), study.gaussian(rng, 4, 7, 0.01)
    for i, row in enumerate(study.dots(a, b)):
        for j, value in enumerate(row):
            assert value == pytest.approx(sum(a[i][k] * b[j][k] for k in range(7)), abs=1e-13)


def randomised(layers, rng):
    """Weights and biases large enough for every gradient to matter."""
    return [study.gaussian(rng, len(m), len(m[0]), 0.6) for m in layers]


def finite_difference(loss, params, k, i, j, step=1e-5):
    def at(change):
        moved = [list(m) for m in params]
        row = list(moved[k][i])
        row[j] += change
        moved[k][i] = tuple(row)
        return loss(moved)[0]

    return (at(step) - at(-step)) / (2 * step)


def assert_gradients(loss, params):
    gradients = loss(params)[1]
    assert [[len(row) for row in m] for m in gradients] == [[len(row) for row in m] for m in params]
    largest = 0.0
    for k, matrix in enumerate(params):
        for i, row in enumerate(matrix):
            for j in range(len(row)):
                expected = finite_difference(loss, params, k, i, j)
                assert gradients[k][i][j] == pytest.approx(expected, rel=1e-5, abs=2e-9), (k, i, j)
                largest = max(largest, abs(expected))
    assert largest > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
def test_task_gradients_of_every_parameter(kernel, frozen):
    vocab, rng = 7, Random(2)
    sequences = [[rng.randrange(vocab) for _ in range(9)] for _ in range(6)]
    frequencies = study.bigram_frequencies(sequences, vocab)
    codes = study.gaussian(rng, vocab, 3, 1.0)
    layers = randomised(study.network(rng, 3, 6, vocab), rng)
    if frozen:
        assert_gradients(lambda p: study.task_loss(p, frequencies, codes), layers)
    else:
        assert_gradients(lambda p: study.task_loss(p, frequencies), [codes, *layers])


@pytest.mark.parametrize("method", ["standard", "deep", "variational"])
def test_autoencoder_gradients_of_every_parameter(kernel, method, monkeypatch):
    monkeypatch.setattr(study, "HIDDEN", 4)
    rng = Random(3)
    table = study.gaussian(rng, 5, 6, 1.0)
    params = randomised(study.autoencoder(rng, method, 6, 2), rng)
    noise = study.gaussian(rng, 5, 2, 1.0) if method == "variational" else None
    assert len(params) == (4 if method == "deep" else 2)
    assert_gradients(lambda p: study.autoencoder_loss(p, table, noise), params)


def test_variational_loss_is_the_error_plus_the_divergence():
    # A zero encoder codes every token as N(0, 1), which diverges by nothing; means of 1 and
    # log-variances of 0 diverge by 1/2 nat a dimension.
    table, noise = [(2.0, 0.0), (0.0, -2.0)], [(0.3,), (-0.7,)]
    decoder = [(0.0, 0.0), (0.0, 0.0)]
    zero = [[(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)], decoder]
    assert study.autoencoder_loss(zero, table, noise)[0] == pytest.approx(2.0)
    ones = [[(0.0, 0.0, 1.0), (0.0, 0.0, 0.0)], decoder]
    expected = 2.0 + study.KL_WEIGHT * (2 * 0.5) / 4 * 2.0  # 2 tokens, 4 entries, mean square 2
    assert study.autoencoder_loss(ones, table, noise)[0] == pytest.approx(expected)


def walk_in_scalars(codes, hidden, output, sequences):
    """Loss and gradients of the task model one number at a time, nothing shared with the study."""
    n_pairs = sum(len(s) - 1 for s in sequences)
    gradients = [[[0.0] * len(row) for row in m] for m in (codes, hidden, output)]
    loss, c, h = 0.0, len(codes[0]), len(hidden)
    for s in sequences:
        for t in range(len(s) - 1):
            x, y = s[t], s[t + 1]
            before = [
                sum(hidden[u][i] * codes[x][i] for i in range(c)) + hidden[u][c] for u in range(h)
            ]
            after = [max(0.0, value) for value in before]
            logits = [sum(row[u] * after[u] for u in range(h)) + row[h] for row in output]
            normaliser = sum(math.exp(z) for z in logits)
            loss -= math.log(math.exp(logits[y]) / normaliser) / n_pairs
            for v, row in enumerate(output):
                d = (math.exp(logits[v]) / normaliser - (1 if v == y else 0)) / n_pairs
                gradients[2][v][h] += d
                for u in range(h):
                    gradients[2][v][u] += d * after[u]
                    if before[u] > 0:
                        gradients[1][u][c] += d * row[u]
                        for i in range(c):
                            gradients[1][u][i] += d * row[u] * codes[x][i]
                            gradients[0][x][i] += d * row[u] * hidden[u][i]
    return loss, gradients


def test_bigram_table_equals_the_walk_over_tokens(kernel):
    vocab, rng = 20, Random(4)
    sequences = study.draw_sequences(study.make_task("complex", vocab), 12, rng)
    params = [study.gaussian(rng, vocab, 4, 1.0)]
    params += randomised(study.network(rng, 4, 8, vocab), rng)
    loss, gradients = walk_in_scalars(*params, sequences)
    table = study.task_loss(params, study.bigram_frequencies(sequences, vocab))
    assert table[0] == pytest.approx(loss, rel=1e-12)
    for matrix, expected in zip(table[1], gradients, strict=True):
        for row, expected_row in zip(matrix, expected, strict=True):
            assert list(row) == pytest.approx(expected_row, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("cosine", [False, True])
def test_adam_follows_its_paper(cosine):
    # Algorithm 1 of Kingma and Ba on f(w) = w^2 / 2, whose gradient is w.
    params = [[(2.0, -0.5)]]
    protocol = TINY._replace(cosine=cosine, min_epochs=7, max_epochs=7)
    study.adam(params, lambda p: (0.0, [[p[0][0]]]), protocol.rates(0.1, vocab=9))
    for start, end in ((2.0, params[0][0][0]), (-0.5, params[0][0][1])):
        w, m, v = start, 0.0, 0.0
        for t in range(1, 8):
            rate = 0.1 * (math.cos(math.pi * (t - 1) / 14) ** 2 if cosine else 1)
            m, v = 0.9 * m + 0.1 * w, 0.999 * v + 0.001 * w**2
            w -= rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert end == pytest.approx(w, rel=1e-12)


# --- Data and floor ---


def enumerated_law(task, vocab, positions=6):
    """The bigram law at every position, from all (pattern, token) states of the generator."""
    jump = {}
    for k, weight in enumerate(task.weights):
        for group in task.groups:
            for x in group:
                chance = weight / sum(task.weights) / len(task.groups) / len(group)
                jump[k, x] = jump.get((k, x), 0) + chance
    now = jump
    for _ in range(positions):
        law, after = Counter(), Counter()
        for (k, x), p in now.items():
            moves = {state: task.noise * q for state, q in jump.items()}
            for y in task.patterns[k][x]:
                moves[k, y] += (1 - task.noise) / len(task.patterns[k][x])
            for (j, y), q in moves.items():
                law[x, y] += p * q
                after[j, y] += p * q
        yield law
        now = after


@pytest.mark.parametrize("data", study.NOISE)
def test_floor_is_the_enumerated_conditional_entropy(data):
    vocab = 25
    task = study.make_task(data, vocab)
    for law in enumerated_law(task, vocab):
        assert sum(law.values()) == pytest.approx(1)
        mass = Counter()
        for (x, _), p in law.items():
            mass[x] += p
        floor = sum(p * math.log(mass[x] / p) for (x, _), p in law.items())
        assert study.entropy_floor(data, vocab) == pytest.approx(floor, rel=1e-12)
        table = study.bigram_law(task, vocab)
        assert all(
            table[x][y] == pytest.approx(law[x, y]) for x in range(vocab) for y in range(vocab)
        )


def test_floor_of_simple_patterns_in_closed_form():
    for vocab in (50, 100, 1000):
        other = 0.05 / vocab  # any token after a jump
        follows = 0.95 + other
        expected = -follows * math.log(follows) - (vocab - 1) * other * math.log(other)
        assert study.entropy_floor("simple", vocab) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("data", study.NOISE)
def test_sequences_follow_the_law(data):
    vocab, number = 25, 1500
    task = study.make_task(data, vocab)
    sequences = study.draw_sequences(task, number, Random(5))
    assert {len(s) for s in sequences} == {study.SEQUENCE_TOKENS}
    law = study.bigram_law(task, vocab)
    # The mean code length under the true law estimates the floor: within five standard errors.
    lengths = [
        stats.mean([-math.log(law[x][y] / sum(law[x])) for x, y in pairwise(s)]) for s in sequences
    ]
    error = stats.sd(lengths) / math.sqrt(number)
    assert abs(stats.mean(lengths) - study.entropy_floor(data, vocab)) < 5 * error
    pairs = Counter(pair for s in sequences for pair in pairwise(s))
    table = study.bigram_frequencies(sequences, vocab)
    total = sum(pairs.values())
    assert all(table[x][y] == pairs[x, y] / total for x in range(vocab) for y in range(vocab))


# --- Runs ---


def test_a_learned_encoding_reaches_the_floor():
    protocol = TINY._replace(
        train_sequences=2000, heldout_sequences=2000, min_epochs=150, max_epochs=150
    )
    result = study.run(study.Condition(20, 2, "simple", "learned"), 1, protocol)
    excess = result["loss"] - study.entropy_floor("simple", 20)
    assert -0.01 < excess < 0.05


def test_autoencoders_learn_to_rebuild_the_table():
    protocol = TINY._replace(min_epochs=100, max_epochs=100)
    for method in ("standard", "deep", "variational"):
        condition = study.Condition(20, 2, "simple", method)
        _, facts = study.initial_codes(condition, 1, protocol, [])
        assert facts["reconstruction_error"] < 0.1, method


def test_results_do_not_depend_on_workers(monkeypatch):
    pool, processes = study.ProcessPoolExecutor, []
    monkeypatch.setattr(
        study, "ProcessPoolExecutor", lambda n, **how: processes.append(n) or pool(n, **how)
    )
    conditions = [study.Condition(20, 8, "structured", m) for m in ("learned", "variational")]
    alone = study.run_all(conditions, [42, 43, 44], TINY, workers=1)
    assert study.run_all(conditions, [42, 43, 44], TINY, workers=9) == alone
    assert processes == [1, 6]  # one per job is enough
    assert list(alone) == conditions
    assert len({r["loss"] for results in alone.values() for r in results}) == 6


def test_parameters_are_those_of_the_models():
    sizes = {"standard": 33 * 4 + 5 * 32, "variational": 33 * 8 + 5 * 32}
    sizes["deep"] = 33 * 32 + 33 * 4 + 5 * 32 + 33 * 32
    for method, size in sizes.items():
        result = study.run(study.Condition(20, 8, "simple", method), 1, TINY)
        assert result["autoencoder"] == size
        assert (result["table"], result["codes"]) == (20 * 32, 20 * 4)
        assert result["task_model"] == 5 * 32 + 33 * 20


def test_the_arithmetic_of_parameters_is_that_of_a_run():
    ran = study.run(study.Condition(100, 8, "simple", "standard"), 1, TINY)
    row = [cell.strip() for cell in study.memory_table().splitlines()[2].split("|")]
    assert row[2:5] == [f"{ran[name]:,}" for name in ("table", "codes", "autoencoder")]
    whole = ran["table"] + ran["autoencoder"] + ran["task_model"]
    assert row[5].endswith(f", {1 - (ran['codes'] + ran['task_model']) / whole:.1%}")


# --- Verdicts ---


def line_of(first, second, vocab, **others):
    """The line of two samples, in a section with the `others`, each a pair of samples."""
    pairs, runs = {}, {}
    for label, samples in {"row": (first, second), **others}.items():
        learned = study.Condition(vocab, 8, "simple", "learned")
        learned = learned._replace(ratio=2 ** len(pairs))
        pairs[label] = learned, learned._replace(method="standard")
        runs |= {c: [{"loss": x} for x in s] for c, s in zip(pairs[label], samples, strict=True)}
    return study.compare(runs, pairs, 0.01)["row"]


def test_verdicts():
    chance = math.log(100)
    near = [chance * f for f in (0.991, 0.995, 1.001)]
    assert line_of(near, near, 100).verdict == "at chance: nothing was learned"
    learned = [1.0, 1.001, 0.999]
    assert line_of(learned, [1.001, 1.0021, 1.0], 100).verdict == "equivalent"
    assert line_of(learned, [1.2, 1.21, 1.19], 100).verdict == "learned lower"
    assert line_of([1.2, 1.21, 1.19], learned, 100).verdict == "learned higher"
    # Not significant (p > 0.05), and yet nothing to call equivalent.
    wide = line_of([1.0, 1.3, 0.8], [1.1, 0.9, 1.2], 100)
    assert wide.paired.p > 0.5
    assert wide.verdict == "not resolved"
    # One method at chance is not enough for the first verdict.
    assert line_of(near, learned, 100).verdict == "learned higher"


def test_differences_at_chance_are_spoken_of_where_there_are_some():
    noise, chance = [4.61, 4.6, 4.62], math.log(100)
    same, apart = (line_of(noise, second, 100) for second in (noise, [x - 0.01 for x in noise]))
    assert study.note_at_chance([same]).endswith("The paper's level is reproduced.")
    note = study.note_at_chance([same, apart])  # not of the controls, one of which learns
    assert note.startswith("In all rows that the paper has, too, the losses lie within 1%")
    assert "significant there, 1 of 2 rows are here" in note
    assert not study.note_at_chance([same, line_of([chance / 2] * 3, noise, 100)])


def test_p_values_are_corrected_for_the_rows_of_a_section():
    first, second = [1.0, 1.01, 0.99, 1.0], [1.05, 1.03, 1.06, 1.04]
    alone = line_of(first, second, 100)
    assert alone.paired_p == alone.paired.p < 0.05
    noise = {str(k): ([1.0, 1.3, 0.8, 1.1], [1.1, 0.9, 1.2, 1.0]) for k in range(9)}
    among_ten = line_of(first, second, 100, **noise)
    assert among_ten.paired_p == pytest.approx(10 * alone.paired.p)


def test_only_tost_says_equivalent():
    rng = Random(6)
    seen = Counter()
    for _ in range(300):
        shift, spread = rng.choice([0, 0.005, 0.02]), rng.choice([0.001, 0.01, 0.1])
        a = [1 + rng.gauss(0, spread) for _ in range(4)]
        b = [1 + shift + rng.gauss(0, spread) for _ in range(4)]
        line = line_of(a, b, 20)
        test = stats.paired(a, b)
        half = stats.t_quantile(0.95, test.df) * test.se  # of the interval at 90%
        within = abs(test.difference) + half < line.margin
        assert (line.verdict == "equivalent") == within
        seen[line.verdict] += 1
    assert set(seen) == {"equivalent", "learned lower", "learned higher", "not resolved"}


# --- Controls ---


def test_principal_axes_are_eigenvectors_of_known_matrices():
    rng = Random(7)
    basis = study.gaussian(rng, 9, 9, 1.0)
    symmetric = study.dots(basis, basis)
    axes = study.eigenvectors(symmetric)
    values = []
    for axis in axes:
        image = [sum(a * b for a, b in zip(row, axis, strict=True)) for row in symmetric]
        values.append(sum(a * b for a, b in zip(image, axis, strict=True)))
        assert image == pytest.approx([values[-1] * x for x in axis], abs=1e-9)
    assert values == sorted(values, reverse=True)
    for i, row in enumerate(study.dots(axes, axes)):
        assert list(row) == pytest.approx([float(i == j) for j in range(9)], abs=1e-10)
    assert sum(values) == pytest.approx(sum(symmetric[i][i] for i in range(9)))


def test_principal_components_keep_what_a_low_rank_table_holds():
    rng = Random(8)
    low = study.dots(study.gaussian(rng, 30, 3, 1.0), study.gaussian(rng, 12, 3, 1.0))
    shifted = [tuple(x + 5 for x in row) for row in low]  # the mean does not matter
    codes = study.principal_components(shifted, 3)
    for i in range(30):  # distances between tokens survive
        assert math.dist(codes[0], codes[i]) == pytest.approx(math.dist(low[0], low[i]), abs=1e-9)


def test_tuned_codes_start_from_the_frozen_ones():
    frozen = study.Condition(16, 8, "factored", "trained pca")
    tuned = frozen._replace(method=frozen.method + study.TUNED)
    table = study.bigram_frequencies(
        study.draw_sequences(study.make_task("factored", 16), 50, Random(1)), 16
    )
    start = [study.initial_codes(c, 1, TINY, table)[0] for c in (frozen, tuned)]
    assert start[0] == start[1]
    losses = [study.run(c, 1, TINY)["loss"] for c in (frozen, tuned)]
    assert losses[1] < losses[0]


def test_factored_data_asks_for_a_square():
    with pytest.raises(ValueError, match="vocab=20: expected a square"):
        study.make_task("factored", 20)


# --- The program ---


def test_a_quick_look_or_a_section_does_not_replace_the_study():
    of_section = ["--section=data", "--protocol=trained"]
    look, whole, part = (
        study.configure(study.StudyConfig, words) for words in (["--quick"], [], of_section)
    )
    assert (look.seeds, look.out) == (3, "out/autoenc_paper_quick.json")
    assert (whole.seeds, whole.out) == (10, "out/autoenc_paper.json")
    assert (part.seeds, part.out) == (10, "out/autoenc_trained_data.json")


@pytest.mark.slow
def test_quick_study_end_to_end(tmp_path, capsys, monkeypatch):
    def fewer(protocol):
        few = {"train_sequences": 40, "heldout_sequences": 20}
        return protocol._replace(min_epochs=2, max_epochs=2, **few)

    monkeypatch.setattr(study.Protocol, "quick", fewer)
    words = ["--quick", "--seeds=2", "--workers=1", f"--out={tmp_path}/new/r.json"]
    study.main(words)
    done = capsys.readouterr()
    for title in study.TITLES.values():
        assert f"\n## {title}\n" in done.out
    for label, figures in study.PAPER.items():
        losses, claim = figures.split(": ")
        assert f" {losses} |" in done.out or label in ("V = 500", "V = 1000")  # are left out
        assert f" {claim} |" in done.out or label in ("V = 500", "V = 1000")
    assert "204.8M → 25.6M, 87.5%" in done.out
    assert all(len(line) <= 140 for line in done.out.splitlines())
    assert "TOST margin: 1.00%" in " ".join(done.out.split())
    assert "| at chance |" in done.out
    assert " s with 1 worker, " in done.out
    record = json.loads((tmp_path / "new" / "r.json").read_text(encoding="utf-8"))
    assert record["versions"]["commit"] is None or len(record["versions"]["commit"]) >= 40
    assert record["settings"]["seeds"] == [42, 43]
    assert record["settings"]["learning_rate"] == 0.001
    assert {r["epochs"] for r in record["runs"]} == {2}
    assert set(record["sections"]) == set(study.SECTIONS)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--seeds=1", "seeds=1: expected at least 2"),
        ("--seeds=100000000000", "seeds=100000000000: expected at least 2 and at most 10,000"),
        ("--seeds=many", "seeds='many' on the command line: expected a whole number"),
        ("--workers=0", "workers=0: expected at least 1"),
        ("--margin=1", "margin=1.0: expected above 0 and below 1"),
        ("--protocol=papers", "protocol='papers': expected paper or trained"),
        ("--section=5.2", "section='5.2': expected all, compression"),
        ("--sedes=3", "unknown setting 'sedes' on the command line: did you mean 'seeds'?"),
    ],
)
def test_bad_settings_are_named(word, message):
    with pytest.raises(UserError) as caught:
        study.main([word])
    assert str(caught.value).startswith(message)


def test_a_place_that_cannot_be_written_is_named_before_the_study_runs():
    words = [sys.executable, "autoenc_study.py", "--out=autoenc_study.py/x.json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write autoenc_study.py")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(28, "No space left on device"), study.BrokenProcessPool()],
)
def test_a_study_that_does_not_end_leaves_the_results_before(tmp_path, monkeypatch, error):
    def end(config):
        assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
        raise error

    monkeypatch.setattr(study, "make_study", end)
    (tmp_path / "r.json").write_text("before")
    with pytest.raises((KeyboardInterrupt, UserError)):
        study.main([f"--out={tmp_path}/r.json"])
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_workers_end_with_a_study_that_is_killed():
    killed = "import os, signal, autoenc_study as study\n"
    killed += "pool = study.ProcessPoolExecutor(2, initializer=study.end_with_parent)\n"
    killed += "pool.submit(int).result()\nos.kill(os.getpid(), signal.SIGTERM)"
    # Ends once nobody holds the pipes any more, workers included.
    done = subprocess.run(
        [sys.executable, "-c", killed], cwd=ROOT, stderr=subprocess.PIPE, timeout=60
    )
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("file", sorted(ROOT.glob("results/autoenc_*.json")), ids=lambda f: f.stem)
def test_kept_results_are_what_their_losses_say(file):
    record = json.loads(file.read_text(encoding="utf-8"))
    seeds = record["settings"]["seeds"]
    assert seeds == list(range(study.FIRST_SEED, study.FIRST_SEED + len(seeds)))
    runs = {}
    for r in record["runs"]:
        condition = study.Condition(*(r[field] for field in study.Condition._fields))
        runs.setdefault(condition, []).append(r)
    for name, rows in record["sections"].items():
        lines = study.compare(runs, study.section_pairs(name, quick=False), 0.01)
        assert list(lines) == list(rows)
        for label, line in lines.items():
            assert line.verdict == rows[label]["verdict"]
            assert line.paired_p == pytest.approx(rows[label]["paired_p"], rel=1e-6)
    if record["settings"]["protocol"] == "trained":
        best = record["sections"]["compression"]["2:1"]
        assert 0 < best["first_mean"] - best["floor"] < 0.05
