#!/usr/bin/env python3
"""What transformers computes with a folder that the library wrote: the same logits, generated tokens and token ids.

usage: check_export.py FOLDER BART      FOLDER as build/export (tests/export.c) writes it; BART: the example program
Says SKIPPED where there is no Python with torch and transformers.
"""
import json
import os
import shutil
import subprocess
import sys

try:
    import torch
    from transformers import AutoTokenizer, BartForConditionalGeneration
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
except ImportError as error:
    print("SKIPPED: no torch or transformers (%s)" % error)
    sys.exit(0)

folder, bart = sys.argv[1:3]


def ask(*arguments):
    return subprocess.run((bart,) + arguments, capture_output=True, check=True).stdout.decode(errors="replace")[:-1]


model, tokenizer = BartForConditionalGeneration.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
with open(os.path.join(folder, "expected.json")) as file:
    expected = json.load(file)
with torch.no_grad():
    logits = model(input_ids=torch.tensor([expected["source"]]), labels=torch.tensor([expected["labels"]])).logits[0]
off = (logits.flatten() - torch.tensor(expected["logits"])).abs().max().item()
print("logits: off by %.2g at most" % off)
bad = off > 2e-5

torch.manual_seed(1)
for n in (3, 7, 12):
    ids = [0] + torch.randint(5, model.config.vocab_size, (n,)).tolist() + [2]
    text = tokenizer.decode(ids[1:-1])
    if tokenizer.encode(text)[1:-1] and tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) != text:
        print("text %r does not come back from the tokenizer" % text)
        bad = True
    for beams in (1, 4):
        theirs = model.generate(torch.tensor([ids]), num_beams=beams, max_length=16)[0].tolist()
        ours = ask(folder, "--ids", " ".join(map(str, ids)), "--beams", str(beams), "--max", "16")
        ours = list(map(int, (ours.split("  ", 1)[1] if beams > 1 else ours).split()))
        if ours != theirs:
            print("ids %s, %d beams: ours %s, transformers %s" % (ids, beams, ours, theirs))
            bad = True

# What a folder says about lengths and about the space before a text, and what holds where it says nothing.
other = folder + "_settings"
for settings, space in (({}, True), ({"max_new_tokens": 7, "max_length": 4}, False), ({"min_new_tokens": 9, "max_length": 12}, None),
                        ({"max_length": 20, "eos_token_id": [2]}, True)):
    shutil.copytree(folder, other, dirs_exist_ok=True)
    for name, change in (("generation_config.json", settings), ("tokenizer_config.json", {"add_prefix_space": space})):
        with open(os.path.join(other, name)) as file:
            values = json.load(file)
        for key in ("max_length", "min_length", "max_new_tokens", "min_new_tokens", "add_prefix_space"):
            values.pop(key, None)
        values.update({key: value for key, value in change.items() if value is not None})
        with open(os.path.join(other, name), "w") as file:
            json.dump(values, file)
    model, tokenizer = BartForConditionalGeneration.from_pretrained(other).eval(), AutoTokenizer.from_pretrained(other)
    theirs = model.generate(**tokenizer(["a word"], return_tensors="pt"), num_beams=1)
    theirs = tokenizer.decode(theirs[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ours = ask(other, "a word", "--beams", "1")
    if ours != theirs:
        print("%s, %s: ours %r, transformers %r" % (settings, space, ours, theirs))
        bad = True
shutil.rmtree(other)
print("export: %s" % ("transformers differs" if bad else "transformers computes the same"))
sys.exit(bad)
