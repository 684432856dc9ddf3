#!/usr/bin/env python3
"""Makes the table of Unicode letters and numbers in taskmoe.h (>>tokenizer): what \\p{L} and \\p{N} match.

usage: make_unicode.py [HEADER]     prints the table; with HEADER it says whether the table there is the same
needs: the `regex` package of version 2024.11.6, whose Unicode data are those of Hugging Face's tokenizers 0.23 (Unicode 16)
"""
import re
import sys

import regex

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"     # 32 that end a number, 32 that go before
letter, number = regex.compile(r"\p{L}"), regex.compile(r"\p{N}")


def kind(c):
    if 0xD800 <= c < 0xE000:
        return 0
    return 1 if letter.match(chr(c)) else 2 if number.match(chr(c)) else 0


def digits(n):
    text = DIGITS[n % 32]
    while n >= 32:
        n //= 32
        text = DIGITS[32 + n % 32] + text
    return text


runs, start, now = [], 0x80, kind(0x80)
for c in range(0x81, 0x110001):
    k = kind(c) if c < 0x110000 else -1
    if k != now:
        runs.append(digits(3 * (c - start) + now))
        start, now = c, k
table = "".join(runs)
if len(sys.argv) > 1:
    with open(sys.argv[1]) as file:
        text = file.read()
    found = re.search(r"tmoei_unicode_runs\[\] =\n((?: +\"[^\"]*\"\n?)+);", text)
    same = found is not None and "".join(re.findall(r'"([^"]*)"', found.group(1))) == table
    print("the table in %s is %s (regex %s)" % (sys.argv[1], "the same" if same else "another one", regex.__version__))
    sys.exit(not same)
for i in range(0, len(table), 94):
    print('    "%s"' % table[i:i + 94])
