"""Token codes learned with the task against codes from an autoencoder, on small vocabularies.

    python autoenc_study.py                      # the paper's protocol, every section
    python autoenc_study.py --protocol=trained   # the same comparisons, trained until they learn
    python autoenc_study.py --quick              # fewer seeds, sizes and sequences

Standard library only, as is what it uses of inputcodes: the statistics of compare.py, the settings
of every command and the writing of files. The paper is M. Bee, "Learning Token Encodings During
Training Achieves Equivalent Performance with Dramatic Memory Savings" (2025); its section numbers
are used below. It leaves much open; what was chosen here:

- Task model: code (C numbers) -> 32 ReLU units -> softmax over the V tokens, with biases. The
  hidden width and the N(0, 0.1) initial weights are those of the code that the paper names.
- The paper's autoencoders have no source of embeddings but random draws (V x 32, fixed): they can
  learn nothing about the task. Standard deviation 0.1, like all the rest, in the paper's protocol;
  1 in the trained one. Standard: one linear layer each way, the code linear too. Deep: a ReLU
  layer of 32 more each way. Variational: mean and log-variance from one layer, a sample of them
  decoded in training, the mean taken as the code. All minimise the squared error over the table,
  for as many epochs as the task model trains.
- The controls are ours: random codes that nothing trains; learned codes that start with standard
  deviation 1 instead of 0.1; and what is done in practice, the compression (autoencoder or
  principal components) of 32-dimensional embeddings that were trained on the task for as many
  epochs, kept frozen or tuned with the task model.
- Data: Markov chains whose law is known exactly and fixed for a (data type, V). A seed draws the
  training and held-out sequences, the embeddings and the initial weights. Methods of one seed
  share the sequences and the task model's initial weights, so they are compared seed by seed; the
  p-values of a section are corrected for the number of its rows (Holm 1979).
- Floor: the entropy of the next token given the current one (all that the model sees) under the
  chain's law. In the complex patterns a model that sees further back could go lower.

The model sees one token at a time, so a full batch is the V x V table of bigram frequencies.
Shapes: V tokens, C = 32 / ratio, H = 32. A matrix is a list of tuples. A layer has one row for each
of its outputs: the weights, then the bias.
"""

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, repeat
from operator import mul, sub
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from inputcodes import configurator, stats
from inputcodes.configurator import Settings, configure, end_with_parent, run_main, setting
from inputcodes.files import git_commit, replacing

Row = tuple[float, ...]
Matrix = list[Row]
Loss = tuple[float, list[Matrix]]  # with the gradients of the parameters

ORIGINAL_DIM = 32
HIDDEN = 32
INIT_SD = 0.1
KL_WEIGHT = 0.1  # beside the relative squared error; at 1 most code dimensions collapse
SEQUENCE_TOKENS = 33  # 32 bigrams
FIRST_SEED = 42
NOISE = {"simple": 0.05, "complex": 0.1, "structured": 0.1, "semi-random": 0.5, "factored": 0.1}
SECTIONS = ("compression", "vocabulary", "data", "baselines", "controls")
AUTOENCODERS = ("standard", "deep", "variational")  # of random embeddings
TRAINED = ("trained autoencoder", "trained pca")  # of embeddings trained on the task
TUNED = ", tuned"  # behind one of TRAINED: the codes go on learning with the task model


class Condition(NamedTuple):
    """What a run trains; with a seed and a protocol it decides every number of the run."""

    vocab: int
    ratio: int
    data: str
    method: str


Runs = dict[Condition, list[dict[str, Any]]]  # one entry per seed
Pair = tuple[Condition, Condition]  # of a row: the difference is first minus second


class Protocol(NamedTuple):
    """A training schedule: Adam, one step over the full batch per epoch."""

    learning_rate: float
    autoencoder_rate: float
    cosine: bool  # both rates decay to zero, instead of staying constant
    embedding_sd: float
    work: int  # epochs = work / V, kept between the two bounds
    min_epochs: int
    max_epochs: int
    train_sequences: int = 12_500
    heldout_sequences: int = 2_500

    def rates(self, peak: float, vocab: int) -> list[float]:
        epochs = max(self.min_epochs, min(self.max_epochs, self.work // vocab))
        if not self.cosine:
            return [peak] * epochs
        return [0.5 * peak * (1 + math.cos(math.pi * t / epochs)) for t in range(epochs)]

    def quick(self) -> "Protocol":
        epochs = max(25, self.max_epochs // 3)
        return self._replace(train_sequences=1_250, heldout_sequences=250, max_epochs=epochs)


PROTOCOLS = {
    "paper": Protocol(0.001, 0.001, False, 0.1, 0, 25, 25),  # section 3.3
    "trained": Protocol(0.15, 0.03, True, 1.0, 25_000, 50, 250),
}

SUMPROD: Any = getattr(math, "sumprod", None)  # Python 3.12 and newer


def dots(a: Matrix, b: Matrix) -> Matrix:
    """The dot product of every row of a with every row of b: (n, k), (m, k) -> (n, m)."""
    if SUMPROD:
        return [tuple([SUMPROD(x, y) for y in b]) for x in a]
    # x.y = (|x|^2 + |y|^2 - |x - y|^2) / 2, with an error of 1e-16 (|x|^2 + |y|^2): math.dist is
    # the older Pythons' only C loop over two vectors, 3 to 4 times as fast as sum(map(mul, x, y)).
    dist, products = math.dist, []
    squares = [(y, sum(map(mul, y, y))) for y in b]
    for x in a:
        xx = sum(map(mul, x, x))
        products.append(tuple([0.5 * (xx + yy - (d := dist(x, y)) * d) for y, yy in squares]))
    return products


def transpose(matrix: Sequence[Row]) -> Matrix:
    return list(zip(*matrix, strict=True))


def gaussian(rng: Random, rows: int, columns: int, sd: float) -> Matrix:
    return [tuple([rng.gauss(0, sd) for _ in range(columns)]) for _ in range(rows)]


def network(rng: Random, *sizes: int) -> list[Matrix]:
    """Dense layers from sizes[0] inputs to sizes[-1] outputs; the biases start at zero."""
    return [[(*row, 0.0) for row in gaussian(rng, m, n, INIT_SD)] for n, m in pairwise(sizes)]


def minus(a: Matrix, b: Matrix) -> Matrix:
    return [tuple(map(sub, x, y)) for x, y in zip(a, b, strict=True)]


def squares(matrix: Matrix) -> float:
    return sum(sum(map(mul, row, row)) for row in matrix)


def count(matrices: Sequence[Matrix]) -> int:
    return sum(len(row) for matrix in matrices for row in matrix)


def forward(layers: list[Matrix], inputs: Matrix) -> list[Matrix]:
    """The inputs and the output of every layer, with a ReLU between layers."""
    activations = [inputs]
    for k, layer in enumerate(layers):
        outputs = dots([(*row, 1.0) for row in activations[-1]], layer)
        if k < len(layers) - 1:
            outputs = [tuple([max(x, 0.0) for x in row]) for row in outputs]
        activations.append(outputs)
    return activations


def backward(layers: list[Matrix], activations: list[Matrix], d: Matrix) -> tuple[Any, Matrix]:
    """Gradients of the layers and of the inputs; d is that of the last layer's output."""
    gradients: list[Matrix] = []
    for k in reversed(range(len(layers))):
        inputs = [(*row, 1.0) for row in activations[k]]
        gradients.insert(0, dots(transpose(d), transpose(inputs)))
        d = dots(d, transpose(layers[k])[:-1])
        if k > 0:  # this layer's inputs came through a ReLU
            d = [tuple(map(mul, d[i], [x > 0 for x in r])) for i, r in enumerate(activations[k])]
    return gradients, d


def softmax_loss(logits: Matrix, frequencies: Matrix) -> tuple[float, Matrix]:
    """Cross-entropy in nats and its gradient; frequencies[x][y] is the share of the bigram xy."""
    loss, gradient = 0.0, []
    for row, wanted in zip(logits, frequencies, strict=True):
        top, mass = max(row), sum(wanted)
        exponentials = [math.exp(x - top) for x in row]
        total = sum(exponentials)
        loss += mass * (top + math.log(total)) - sum(map(mul, wanted, row))
        scale = mass / total
        gradient.append(tuple(map(sub, [scale * x for x in exponentials], wanted)))
    return loss, gradient


def task_loss(params: list[Matrix], frequencies: Matrix, frozen: Matrix | None = None) -> Loss:
    """The loss of params = [codes, hidden, output], or of [hidden, output] with frozen codes."""
    codes, layers = (frozen, params) if frozen else (params[0], params[1:])
    activations = forward(layers, codes)
    loss, d = softmax_loss(activations[-1], frequencies)
    gradients, d_codes = backward(layers, activations, d)
    return loss, gradients if frozen else [d_codes, *gradients]


def autoencoder(rng: Random, method: str, d_original: int, d_code: int) -> list[Matrix]:
    """Layers of an encoder, then as many of a decoder."""
    hidden = [HIDDEN] if method == "deep" else []
    outputs = 2 * d_code if method == "variational" else d_code
    encoder = network(rng, d_original, *hidden, outputs)
    return encoder + network(rng, d_code, *hidden, d_original)


def autoencoder_loss(params: list[Matrix], table: Matrix, noise: Matrix | None = None) -> Loss:
    """Mean squared error of rebuilding `table` (V, d_original), and the gradients.

    With `noise` (V, C) from N(0, 1) the autoencoder is variational (Kingma and Welling 2014): its
    encoder gives C means and C log-variances, and the divergence from N(0, 1) is added, times
    KL_WEIGHT, the scale of the error and the mean square of the table.
    """
    half = len(params) // 2
    encoded = forward(params[:half], table)
    sampled = sample_codes(encoded[-1], noise) if noise else encoded[-1]
    decoded = forward(params[half:], sampled)
    scale = 1 / (len(table) * len(table[0]))
    errors = minus(decoded[-1], table)
    loss = scale * squares(errors)
    d = [tuple([2 * scale * x for x in row]) for row in errors]
    decoder_gradients, d = backward(params[half:], decoded, d)
    if noise:
        weight = KL_WEIGHT * scale * scale * squares(table)
        divergence, d = divergence_and_gradient(encoded[-1], noise, d, weight)
        loss += divergence
    return loss, backward(params[:half], encoded, d)[0] + decoder_gradients


def sample_codes(encoded: Matrix, noise: Matrix) -> Matrix:
    """mean + deviation * noise, from rows of C means, then C log-variances."""
    c = len(noise[0])
    return [
        tuple([row[j] + math.exp(row[c + j] / 2) * noise[i][j] for j in range(c)])
        for i, row in enumerate(encoded)
    ]


def divergence_and_gradient(
    encoded: Matrix, noise: Matrix, d: Matrix, weight: float
) -> tuple[float, Matrix]:
    """weight * KL(code || N(0, 1)), and the encoder's gradient; d is that of the sampled codes."""
    total, gradient, c = 0.0, [], len(noise[0])
    for i, row in enumerate(encoded):
        d_mean, d_log_variance = [], []
        for j in range(c):
            mean, log_variance = row[j], row[c + j]
            variance = math.exp(log_variance)
            total += 0.5 * weight * (mean * mean + variance - 1 - log_variance)
            d_mean.append(d[i][j] + weight * mean)
            d_sample = d[i][j] * noise[i][j] * math.sqrt(variance)
            d_log_variance.append(0.5 * (d_sample + weight * (variance - 1)))
        gradient.append((*d_mean, *d_log_variance))
    return total, gradient


def adam(params: list[Matrix], loss: Callable[[list[Matrix]], Loss], rates: list[float]) -> None:
    """Kingma and Ba (2015) with a rate for every step, updating params in place."""
    first = [[(0.0,) * len(row) for row in matrix] for matrix in params]
    second = [list(matrix) for matrix in first]
    for t, rate in enumerate(rates, 1):
        a, b = rate / (1 - 0.9**t), 1 / (1 - 0.999**t)
        for k, gradient in enumerate(loss(params)[1]):
            for i, g in enumerate(gradient):
                row, m, v, span = params[k][i], first[k][i], second[k][i], range(len(g))
                first[k][i] = m = tuple([0.9 * m[j] + 0.1 * g[j] for j in span])
                second[k][i] = v = tuple([0.999 * v[j] + 0.001 * g[j] * g[j] for j in span])
                steps = [a * m[j] / (math.sqrt(b * v[j]) + 1e-8) for j in span]
                params[k][i] = tuple(map(sub, row, steps))


class Task(NamedTuple):
    """A stationary chain: mostly the next token of a pattern, with probability `noise` a jump.

    A jump (and the start) draws a pattern by weight, a group uniformly and a token of the group
    uniformly; patterns[k][x] are the equally likely successors of x. Every pattern leaves the law
    of a jump's token unchanged, so that this law holds at every position.
    """

    noise: float
    groups: list[list[int]]
    patterns: list[list[list[int]]]
    weights: list[float]


def followers(groups: Sequence[list[int]]) -> dict[int, list[int]]:
    """The successors of every token where groups of tokens take turns: all of the next group."""
    return {x: groups[(k + 1) % len(groups)] for k, group in enumerate(groups) for x in group}


def make_task(data: str, vocab: int) -> Task:
    """The law of a data type of section 5.4, the same for every seed.

    simple: separate cycles of four tokens. complex: three orders of all the tokens; which of them
    is followed cannot be seen from one token. structured: five slots in turn, of 5% to 40% of the
    tokens. semi-random: half the steps follow one of four orders, half are jumps. factored: a token
    is a row and a column of a square, and the next one keeps to an order of the rows or to one of
    the columns, any token there: tokens of a row share half of their law, so that a code of a few
    numbers can hold it. ValueError unless V is then a square.
    """
    rng = Random(f"{data} {vocab}")
    tokens = list(range(vocab))
    order = rng.sample(tokens, vocab)
    if data == "structured":
        edges = [round(vocab * share) for share in (0, 0.05, 0.15, 0.30, 0.60, 1)]
        slots = [order[start:end] for start, end in pairwise(edges)]
        after = followers(slots)
        return Task(NOISE[data], slots, [[after[x] for x in tokens]], [1.0])
    if data == "simple":
        after = {}
        for start in range(0, vocab, 4):
            after |= followers([[x] for x in order[start : start + 4]])
        return Task(NOISE[data], [tokens], [[after[x] for x in tokens]], [1.0])
    if data == "factored":
        side = math.isqrt(vocab)
        if side * side != vocab:
            raise ValueError(f"factored data, vocab={vocab}: expected a square number of tokens")
        rows = [order[start : start + side] for start in range(0, vocab, side)]
        orders = followers(rows), followers([order[start::side] for start in range(side)])
        patterns = [[after[x] for x in tokens] for after in orders]
        return Task(NOISE[data], [tokens], patterns, [0.5, 0.5])
    weights = [0.5, 0.3, 0.2] if data == "complex" else [0.4, 0.3, 0.2, 0.1]
    patterns = [[[x] for x in rng.sample(tokens, vocab)] for _ in weights]
    return Task(NOISE[data], [tokens], patterns, weights)


def draw_sequences(task: Task, number: int, rng: Random) -> list[list[int]]:
    sequences = []
    for _ in range(number):
        tokens: list[int] = []
        while len(tokens) < SEQUENCE_TOKENS:
            if not tokens or rng.random() < task.noise:
                pattern = rng.choices(task.patterns, task.weights)[0]
                tokens.append(rng.choice(rng.choice(task.groups)))
            else:
                tokens.append(rng.choice(pattern[tokens[-1]]))
        sequences.append(tokens)
    return sequences


def bigram_frequencies(sequences: list[list[int]], vocab: int) -> Matrix:
    """(V, V): the share of every bigram, all sequences together."""
    counts = [[0] * vocab for _ in range(vocab)]
    for s in sequences:
        for t in range(1, len(s)):
            counts[s[t - 1]][s[t]] += 1
    total = sum(map(sum, counts))
    return [tuple([n / total for n in row]) for row in counts]


def bigram_law(task: Task, vocab: int) -> Matrix:
    """(V, V): the exact probability of every bigram."""
    start = [0.0] * vocab
    for group in task.groups:
        for x in group:
            start[x] = 1 / (len(task.groups) * len(group))
    law = []
    for x in range(vocab):
        row = [task.noise * p for p in start]
        for k, pattern in enumerate(task.patterns):
            for y in pattern[x]:
                row[y] += (1 - task.noise) * task.weights[k] / len(pattern[x])
        law.append(tuple([start[x] * p for p in row]))
    return law


def entropy_floor(data: str, vocab: int) -> float:
    """H(next | current) in nats: the least loss of any model that sees one token."""
    floor = 0.0
    for row in bigram_law(make_task(data, vocab), vocab):
        mass = sum(row)
        floor -= sum(p * math.log(p / mass) for p in row if p > 0)
    return floor


def run(condition: Condition, seed: int, protocol: Protocol) -> dict[str, Any]:
    """Train one method and measure it on held-out sequences; a pure function of its arguments."""
    vocab, ratio, data, method = condition
    d_code, rates = ORIGINAL_DIM // ratio, protocol.rates(protocol.learning_rate, vocab)
    rng = Random(f"{seed} sequences {data} {vocab}")
    task = make_task(data, vocab)
    train = bigram_frequencies(draw_sequences(task, protocol.train_sequences, rng), vocab)
    heldout = bigram_frequencies(draw_sequences(task, protocol.heldout_sequences, rng), vocab)
    layers = network(Random(f"{seed} task model {vocab} {ratio}"), d_code, HIDDEN, vocab)
    sizes = {"seed": seed, "epochs": len(rates), "task_model": count(layers)}
    codes, facts = initial_codes(condition, seed, protocol, train)
    if method.startswith("learned") or method.endswith(TUNED):
        params = [codes, *layers]
        adam(params, lambda p: task_loss(p, train), rates)
        codes, layers = params[0], params[1:]
    else:
        adam(layers, lambda p: task_loss(p, train, codes), rates)
    loss = softmax_loss(forward(layers, codes)[-1], heldout)[0]
    return {**condition._asdict(), **sizes, **facts, "codes": count([codes]), "loss": loss}


def initial_codes(
    condition: Condition, seed: int, protocol: Protocol, train: Matrix
) -> tuple[Matrix, dict[str, Any]]:
    """The codes (V, C) that a method begins with, and what there is to say of an autoencoder."""
    vocab, ratio, _, method = condition
    method, d_code = method.removesuffix(TUNED), ORIGINAL_DIM // ratio
    rng = Random(f"{seed} codes {vocab} {ratio} {method}")
    drawn = {"learned": INIT_SD, "learned, sd 1": 1.0, "random": protocol.embedding_sd}
    if method in drawn:
        return gaussian(rng, vocab, d_code, drawn[method]), {}
    if method in TRAINED:
        params = [gaussian(rng, vocab, ORIGINAL_DIM, INIT_SD)]
        params += network(rng, ORIGINAL_DIM, HIDDEN, vocab)
        adam(params, lambda p: task_loss(p, train), protocol.rates(protocol.learning_rate, vocab))
        table = params[0]
        if method == "trained pca":
            return principal_components(table, d_code), {}
        method = "standard"
    else:
        table = gaussian(rng, vocab, ORIGINAL_DIM, protocol.embedding_sd)
    coder = autoencoder(rng, method, ORIGINAL_DIM, d_code)
    codes = encode(coder, table, d_code, protocol.rates(protocol.autoencoder_rate, vocab), rng)
    error = reconstruction_error(coder, codes, table)
    sizes = {"table": count([table]), "autoencoder": count(coder)}
    return codes, {**sizes, "reconstruction_error": error}


def principal_components(table: Matrix, d_code: int) -> Matrix:
    """The projections (V, C) of a table (V, d) on the C axes of its largest variance."""
    columns = transpose(table)
    centred = transpose([tuple([x - sum(c) / len(c) for x in c]) for c in columns])
    axes = eigenvectors(dots(transpose(centred), transpose(centred)))
    return dots(centred, axes[:d_code])


def eigenvectors(symmetric: Matrix) -> Matrix:
    """Those of a symmetric matrix as rows, of the largest eigenvalue first.

    Jacobi's rotations, sweep by sweep, until nothing is left beside the diagonal (Golub and Van
    Loan, Matrix Computations, section 8.5).
    """
    size = len(symmetric)
    a = [list(row) for row in symmetric]
    v = [[float(i == j) for j in range(size)] for i in range(size)]
    for _ in range(30):
        for i in range(size):
            for j in range(i + 1, size):
                if abs(a[i][j]) <= 1e-15 * math.sqrt(abs(a[i][i] * a[j][j])):
                    continue
                theta = (a[j][j] - a[i][i]) / (2 * a[i][j])
                tan = math.copysign(1, theta) / (abs(theta) + math.hypot(theta, 1))
                cos = 1 / math.hypot(tan, 1)
                sin = tan * cos
                for m in (a, v):  # rows i and j
                    first, second = m[i], m[j]
                    m[i] = [cos * x - sin * y for x, y in zip(first, second, strict=True)]
                    m[j] = [sin * x + cos * y for x, y in zip(first, second, strict=True)]
                for row in a:  # and columns i and j
                    row[i], row[j] = cos * row[i] - sin * row[j], sin * row[i] + cos * row[j]
    order = sorted(range(size), key=lambda i: -a[i][i])
    return [tuple(v[i]) for i in order]


def encode(
    coder: list[Matrix], table: Matrix, d_code: int, rates: list[float], rng: Random
) -> Matrix:
    """Train an autoencoder on the table (V, d_original); its codes (V, C)."""
    half = len(coder) // 2
    variational = len(coder[half - 1]) == 2 * d_code

    def loss(params: list[Matrix]) -> Loss:
        noise = gaussian(rng, len(table), d_code, 1.0) if variational else None
        return autoencoder_loss(params, table, noise)

    adam(coder, loss, rates)
    return [row[:d_code] for row in forward(coder[:half], table)[-1]]  # variational: the means


def reconstruction_error(coder: list[Matrix], codes: Matrix, table: Matrix) -> float:
    """The share of the table's sum of squares that decoding misses."""
    decoded = forward(coder[len(coder) // 2 :], codes)[-1]
    return squares(minus(decoded, table)) / squares(table)


# The paper's figures (5.2 to 5.4): learned, traditional, and what it says of their difference.
PAPER = {
    "2:1": "4.602 ± 0.015, 4.595 ± 0.018: +0.16%, d 0.287, p 0.452",
    "4:1": "4.605 ± 0.022, 4.607 ± 0.022: -0.05%, d 0.042, p 0.919",
    "8:1": "4.606 ± 0.016, 4.605 ± 0.025: +0.02%, d 0.038, p 0.925",
    "16:1": "4.601 ± 0.018, 4.605 ± 0.020: -0.10%, d 0.166, p 0.696",
    "32:1": "4.606 ± 0.022, 4.604 ± 0.025: +0.06%, d 0.072, p 0.862",
    "V = 50": "3.911 ± 0.012, 3.906 ± 0.015: +0.11%, p > 0.05",
    "V = 100": "4.607 ± 0.018, 4.607 ± 0.020: -0.003%, p > 0.05",
    "V = 200": "5.302 ± 0.025, 5.296 ± 0.022: +0.12%, p > 0.05",
    "V = 500": "6.214 ± 0.030, 6.213 ± 0.028: +0.02%, p > 0.05",
    "V = 1000": "6.905 ± 0.035, 6.909 ± 0.032: -0.06%, p > 0.05",
    "simple": "4.608 ± 0.020, 4.607 ± 0.018: robustness 1.000",
    "complex": "4.603 ± 0.025, 4.604 ± 0.022: robustness 0.999",
    "structured": "4.604 ± 0.023, 4.609 ± 0.025: robustness 1.001",
    "semi-random": "4.604 ± 0.022, 4.603 ± 0.020: robustness 0.999",
}
PAPER |= dict.fromkeys(AUTOENCODERS, '-: "equivalent or better"')
PREAMBLE = """\
Protocol: {protocol}; seeds {first} to {last}. Means of the held-out loss in nats per
token; a difference is the first column minus the second, seed by seed, in % of the
second. At chance: both are within 1% of a uniform guess. Below: the standard deviations
of the two over seeds (the paper's losses: mean ± standard deviation), Cohen's d, p-values
of paired tests, corrected for the rows of their section (Holm), and in nats per token the
loss of a uniform guess and the entropy floor. TOST margin: {margin:.2%} of the second
column. The paper's text has a vocabulary of 20 in 5.2 and 5.4, but its losses fit 100
(ln 100 = 4.605), so 100 here."""
PARAMETERS = (  # what, V, d, ratio, the paper's parameters (5.5, 6.3.1, 6.3.2)
    ("V = 100 at 8:1, here", 100, 32, 8, "-"),
    ("V = 1,000 at 8:1", 1_000, 32, 8, "32,000 → 4,000, 87.5%"),
    ("50K x 4,096 at 8:1", 50_000, 4_096, 8, "204.8M → 25.6M, 87.5%"),
    ("genomic, 8 x 256 at 4:1", 8, 256, 4, "2,048 → 512"),
)
USAGE = "usage: python autoenc_study.py [--name=value ...]"
TITLES = {
    "compression": "Compression (5.2): V = 100, simple patterns",
    "vocabulary": "Vocabulary (5.3): 8:1, simple patterns",
    "data": "Data (5.4): V = 100, 8:1",
    "baselines": "Baselines (4.3): V = 100, 8:1, simple patterns",
    "controls": "Controls (ours): V = 100",
}


def section_pairs(section: str, quick: bool) -> dict[str, Pair]:
    """The label of every row and what it compares."""
    if section == "controls":
        return control_pairs()
    if section == "compression":
        rows = {f"{r}:1": Condition(100, r, "simple", "standard") for r in (2, 4, 8, 16, 32)}
    elif section == "vocabulary":
        sizes = (50, 100, 200) if quick else (50, 100, 200, 500, 1000)
        rows = {f"V = {v}": Condition(v, 8, "simple", "standard") for v in sizes}
    elif section == "data":
        rows = {data: Condition(100, 8, data, "standard") for data in NOISE}
    else:
        rows = {method: Condition(100, 8, "simple", method) for method in AUTOENCODERS}
    return {label: (row._replace(method="learned"), row) for label, row in rows.items()}


def control_pairs() -> dict[str, Pair]:
    """Is it the autoencoder, the initial scale, or the embeddings that it is given?"""
    rows = [(ratio, "simple", "standard", "random") for ratio in (8, 32)]
    rows += [(ratio, "simple", "learned, sd 1", "standard") for ratio in (8, 32)]
    others = ("random", *(source + tuned for source in TRAINED for tuned in ("", TUNED)))
    rows += [(8, data, "learned", other) for data in ("simple", "factored") for other in others]
    pairs: dict[str, Pair] = {}
    for ratio, data, first, second in rows:
        label = f"{data} {ratio}:1, {first} - {second}".replace("standard", "autoencoder")
        condition = Condition(100, ratio, data, first)
        pairs[label] = condition, condition._replace(method=second)
    return pairs


def run_all(
    conditions: Sequence[Condition], seeds: Sequence[int], protocol: Protocol, workers: int
) -> Runs:
    """Every condition with every seed, over worker processes; ordered as asked, not as finished."""
    jobs = [(c, seed) for c in conditions for seed in seeds]
    slowest_first = sorted(jobs, key=lambda job: -job[0].vocab)
    results, start = {}, time.perf_counter()
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=end_with_parent) as pool:
        done = pool.map(run, *zip(*slowest_first, strict=True), repeat(protocol))
        for job, result in zip(slowest_first, done, strict=True):
            results[job] = result
            if sys.stderr.isatty() or len(results) == len(jobs):  # a log gets the last line alone
                elapsed = time.perf_counter() - start
                line = f"\r{len(results)}/{len(jobs)} runs, {elapsed:.0f} s"
                print(line, end="", file=sys.stderr)
    print(file=sys.stderr)
    return {c: [results[c, seed] for seed in seeds] for c in conditions}


@dataclass(frozen=True)
class Line:
    """A row of a table: two methods over the same seeds, losses in nats per token."""

    first: str  # the method
    first_mean: float
    first_sd: float
    second_mean: float
    second_sd: float
    chance: float
    floor: float
    margin: float
    paired: stats.Comparison
    paired_p: float  # corrected for the rows of the section, as the next
    tost_p: float
    cohens_d: float

    @property
    def verdict(self) -> str:
        """What the row may claim at the 5% level."""
        means = self.first_mean, self.second_mean
        if all(abs(mean - self.chance) <= 0.01 * self.chance for mean in means):
            return "at chance: nothing was learned"
        if self.tost_p < 0.05:
            return "equivalent"
        if self.paired_p < 0.05:
            return f"{self.first} {'lower' if means[0] < means[1] else 'higher'}"
        return "not resolved"


def compare(runs: Runs, pairs: dict[str, Pair], margin_share: float) -> dict[str, Line]:
    """The rows of a section; the margin is a share of the second method's loss."""
    lines: dict[str, Line] = {}
    for label, pair in pairs.items():
        a, b = ([result["loss"] for result in runs[condition]] for condition in pair)
        vocab, _, data, method = pair[0]
        paired, margin = stats.paired(a, b), margin_share * stats.mean(b)
        moments = stats.mean(a), stats.sd(a), stats.mean(b), stats.sd(b)
        bounds = math.log(vocab), entropy_floor(data, vocab), margin
        tost, d = stats.tost(paired, margin), stats.cohens_d(a, b)
        lines[label] = Line(method, *moments, *bounds, paired, paired.p, tost, d)
    paired_p = stats.holm([line.paired_p for line in lines.values()])
    tost_p = stats.holm([line.tost_p for line in lines.values()])
    each = zip(lines.items(), paired_p, tost_p, strict=True)
    return {label: replace(line, paired_p=p, tost_p=q) for (label, line), p, q in each}


def comparison_tables(section: str, lines: dict[str, Line]) -> str:
    """What came out, then what it rests on; the columns of the two together would be 200 wide."""
    ours = section == "controls"
    header = f"|{'first|second' if ours else 'learned|autoencoder'}|difference [95% CI]|verdict"
    details = "|standard deviations|d|p|TOST p|chance|floor"
    details += "|robustness" if section == "data" else ""
    if not ours:
        header, details = f"{header}|the paper says", f"{details}|the paper's losses"
    results, rows = [], []
    for label, line in lines.items():
        paired, second = line.paired, line.second_mean
        difference, low, high = (x / second for x in (paired.difference, paired.low, paired.high))
        interval = f"{difference:+.2%} [{low * 100:+.2f}, {high * 100:+.2f}]"
        means = f"{line.first_mean:.4f}", f"{second:.4f}"
        result = [label, *means, interval, line.verdict.split(":")[0]]
        row = [label, f"{line.first_sd:.4f}, {line.second_sd:.4f}", f"{line.cohens_d:+.2f}"]
        row += [f"{line.paired_p:.2g}", f"{line.tost_p:.2g}"]
        row += [f"{line.chance:.3f}", f"{line.floor:.3f}"]
        row += [f"{second / line.first_mean:.3f}"] if section == "data" else []
        losses, _, claim = PAPER.get(label, "-: -").partition(": ")
        results.append(result + ([] if ours else [claim]))
        rows.append(row + ([] if ours else [losses]))
    return f"{stats.markdown_table(header, results)}\n\n{stats.markdown_table(details, rows)}"


def note_at_chance(lines: Sequence[Line]) -> str:
    """How the paper's table and this one compare, if nothing was learned in either."""
    if not lines or not all("chance" in line.verdict for line in lines):
        return ""
    note = """\
In all rows that the paper has, too, the losses lie within 1% of a uniform guess (ln V),
here as there: nothing was learned, and the methods must look alike.
The paper's level is reproduced"""
    rows, different = len(lines), sum(line.paired_p < 0.05 for line in lines)
    if different:
        here = stats.mean([sd for line in lines for sd in (line.first_sd, line.second_sd)])
        paper = stats.mean([float(x) for x in re.findall(r"± ([\d.]+)", " ".join(PAPER.values()))])
        note += f""", its differences are not: none of them was
significant there, {different} of {rows} rows are here, because the standard deviation over seeds
is {here:.4f} in the mean here and {paper:.4f} there"""
    return f"{note}."


def memory_table() -> str:
    """Trained numbers of a table with its autoencoder, and of learned codes, by arithmetic."""
    header = "|table, V d|codes, V C|autoencoder|saved|MB|the paper says"
    rows = []
    for label, vocab, d, ratio, claim in PARAMETERS:
        c = d // ratio
        table, codes, coder = vocab * d, vocab * c, (d + 1) * c + (c + 1) * d
        task = (c + 1) * HIDDEN + (HIDDEN + 1) * vocab
        before = table + coder
        shares = codes / table, codes / before, (codes + task) / (before + task)
        row = [label, f"{table:,}", f"{codes:,}", f"{coder:,}"]
        row += [", ".join(f"{1 - share:.1%}" for share in shares)]
        rows.append([*row, f"{before * 4e-6:.4g} → {codes * 4e-6:.4g}", claim])
    return f"""{stats.markdown_table(header, rows)}

Saved: by the paper's formula; the autoencoder counted; the task model counted, too. MB: of
4-byte numbers, before (autoencoder counted) → after."""


@dataclass(frozen=True)
class StudyConfig(Settings):
    protocol: str = setting("paper", "how long to train", choices=tuple(PROTOCOLS))
    section: str = setting("all", "which comparisons to make", choices=("all", *SECTIONS))
    seeds: int = setting(10, "how many, from 42 on; 3 with --quick", least=2, most=10_000)
    workers: int = setting(os.cpu_count() or 1, "processes", least=1)
    margin: float = setting(0.01, "of TOST, a share of the loss", above=0, below=1)
    out: str = setting("", "JSON; empty: out/autoenc_PROTOCOL[_SECTION][_quick].json", is_path=True)
    quick: bool = setting(False, "a look in half a minute: fewer seeds, sizes and sequences")

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        seeds, look = (3, "_quick") if given.get("quick") else (cls.seeds, "")
        part = "" if given.get("section", "all") == "all" else f"_{given['section']}"
        out = f"out/autoenc_{given.get('protocol', cls.protocol)}{part}{look}.json"
        return {"seeds": seeds, **given, "out": given.get("out") or out}


def main(argv: list[str]) -> None:
    config = configure(StudyConfig, argv)
    with replacing(Path(config.out)) as partial:
        partial.touch()  # an error now, not after the minutes that the study takes
        partial.unlink()  # which a signal would leave
        try:
            record = make_study(config)
        except BrokenProcessPool as error:
            why = "a worker was killed (out of memory?): pass --workers=1"
            raise configurator.UserError(why) from error
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    workers = f"{config.workers} worker" + "s" * (config.workers > 1)
    print(
        f"\n{record['elapsed_s']:.0f} s with {workers}, {record['cpu_s']:.0f} s of processor time;"
        f" all numbers in {config.out}"
    )


def make_study(config: StudyConfig) -> dict[str, Any]:
    protocol, start, commit = PROTOCOLS[config.protocol], time.perf_counter(), git_commit()
    if config.quick:
        protocol = protocol.quick()
    names = SECTIONS if config.section == "all" else (config.section,)
    wanted = {name: section_pairs(name, config.quick) for name in names}
    pairs = [pair for rows in wanted.values() for pair in rows.values()]
    conditions = list(dict.fromkeys(condition for pair in pairs for condition in pair))
    seeds = range(FIRST_SEED, FIRST_SEED + config.seeds)
    runs = run_all(conditions, seeds, protocol, config.workers)

    name = f"{config.protocol}, quick" if config.quick else config.protocol
    print(PREAMBLE.format(protocol=name, first=seeds[0], last=seeds[-1], margin=config.margin))
    sections = {}
    for name, rows in wanted.items():
        sections[name] = compare(runs, rows, config.margin)
        print(f"\n## {TITLES[name]}\n\n{comparison_tables(name, sections[name])}")
    print(f"\n## Parameters and memory (5.5)\n\n{memory_table()}")
    papers = [
        line for lines in sections.values() for label, line in lines.items() if label in PAPER
    ]
    print(f"\n{note_at_chance(papers)}")
    asked = {name: value for name, value in asdict(config).items() if name != "out"}
    return {
        "settings": {**asked, **protocol._asdict(), "seeds": list(seeds)},
        "versions": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "commit": commit,
        },
        "elapsed_s": time.perf_counter() - start,
        "cpu_s": sum(os.times()[:4]),
        "sections": {
            name: {label: {**asdict(line), "verdict": line.verdict} for label, line in rows.items()}
            for name, rows in sections.items()
        },
        "runs": [r for c in conditions for r in runs[c]],
    }


if __name__ == "__main__":
    run_main(main, StudyConfig, USAGE)
