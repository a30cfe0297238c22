"""The rules of bert_fast.training's data, token by token in plain Python: what C++ and NumPy must both agree with."""

import contextlib
from unittest import mock

import pytest

from bert_fast import extension

M32 = 2**32 - 1
SELECT, SHUFFLE, REPLACE, PAIR = 1, 2, 3, 4


needs_extension = pytest.mark.skipif(extension.module() is None, reason="the extension is not built here")
ways = pytest.mark.parametrize(
    "fallback", [pytest.param(False, id="compiled", marks=needs_extension), pytest.param(True, id="fallback")]
)


def running(fallback):
    """A context in which the extension is used, or is not there."""
    return mock.patch.object(extension, "module", lambda: None) if fallback else contextlib.nullcontext()


def philox(counter, key):
    """Philox4x32-10 as Salmon et al. (2011) define it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(10):
        x, z = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        w0, w1 = (k0 + step * 0x9E3779B9) & M32, (k1 + step * 0xBB67AE85) & M32
        c0, c1, c2, c3 = (z >> 32) ^ c1 ^ w0, z & M32, (x >> 32) ^ c3 ^ w1, x & M32
    return c0, c1, c2, c3


def block(seed, epoch, purpose, index, number):
    return philox((number, epoch, index & M32, purpose << 24 | index >> 32), (seed & M32, seed >> 32))


class Stream:
    """Draws one after another, two words each."""

    def __init__(self, seed, epoch, purpose, index):
        self.at, self.count = (seed, epoch, purpose, index), 0

    def words(self):
        four = block(*self.at, self.count // 2)
        self.count += 1
        return four[:2] if self.count % 2 else four[2:]

    def below(self, n):
        high, low = self.words()
        return (high * 2**32 + low) * n // 2**64

    def chance(self, p):
        return self.words()[0] < round(p * 2**32)


def mask_sequence(ids, index, rule, special=None, epoch=0):
    """TokenMasking of one sequence, as a list of ids: (masked, labels)."""
    special = special or [0] * len(ids)
    allowed = [not s and i not in rule.special_ids for i, s in zip(ids, special, strict=True)]
    words = []
    for k, i in enumerate(ids):
        if not allowed[k]:
            continue
        if rule.continues_word is not None and rule.continues_word[i] and k > 0 and allowed[k - 1]:
            words[-1].append(k)
        else:
            words.append([k])
    at = (rule.seed, epoch)
    if rule.max_predictions is None:
        limit = round(rule.probability * 2**32)
        chosen = [k for word in words if block(*at, SELECT, index, word[0] // 4)[word[0] % 4] < limit for k in word]
    else:
        budget = min(rule.max_predictions, max(1, round(len(ids) * rule.probability)))
        draws, chosen = Stream(*at, SHUFFLE, index), []
        while words and len(chosen) < budget:
            drawn = draws.below(len(words))
            words[0], words[drawn] = words[drawn], words[0]
            word = words.pop(0)
            chosen += word if len(chosen) + len(word) <= budget else []
    masked, labels = list(ids), [-100] * len(ids)
    for k in chosen:
        treatment, _, high, low = block(*at, REPLACE, index, k)
        labels[k] = ids[k]
        if treatment < round(0.8 * 2**32):
            masked[k] = rule.mask_token_id
        elif treatment < round(0.9 * 2**32):
            masked[k] = (high * 2**32 + low) * rule.vocab_size // 2**64
    return masked, labels


def pairs_of_document(documents, number, rule, epoch=0):
    """SentencePairing of one document of lists of sentences: tuples (A, B, is B random).

    Follows the description of create_instances_from_document: sentences are moved from list to list.
    """
    draws = Stream(rule.seed, epoch, PAIR, number)
    most = target = rule.max_length - 3
    if draws.chance(rule.short_probability):
        target = 2 + draws.below(most - 1)
    waiting, chunk, made = list(documents[number]), [], []
    while waiting:
        chunk.append(waiting.pop(0))
        if waiting and sum(map(len, chunk)) < target:
            continue
        of_a = 1 + draws.below(len(chunk) - 1) if len(chunk) > 1 else 1
        a, rest = sum(chunk[:of_a], []), chunk[of_a:]
        is_random = not rest or draws.chance(0.5)
        if is_random:
            others = documents[:number] + documents[number + 1 :]
            other = others[draws.below(len(others))]
            b = []
            for sentence in other[draws.below(len(other)) :]:
                b = b + sentence
                if len(b) >= target - len(a):
                    break
            waiting = rest + waiting
        else:
            b = sum(rest, [])
        a, b = list(a), list(b)
        while len(a) + len(b) > most:
            longer = a if len(a) > len(b) else b
            longer.pop(0 if draws.chance(0.5) else -1)
        made.append((a, b, is_random))
        chunk = []
    return made


def best_fit_decreasing(lengths, window):
    """pack_windows, by looking at every open window each time: lists of sequences."""
    windows, used = [], []  # used: windows, the one used last at the end
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = {w: window - sum(lengths[j] for j in windows[w]) for w in used}
        fitting = [w for w in reversed(used) if room[w] >= lengths[i]]
        if fitting:
            best = min(fitting, key=lambda w: room[w])
            used.remove(best)
        else:
            best = len(windows)
            windows.append([])
        windows[best].append(i)
        used.append(best)
    return windows
