#!/usr/bin/env python3
"""What transformers computes with a folder that the library wrote: the same logits, generated tokens and token ids.

usage: check_export.py FOLDER BART      FOLDER as build/export (tests/export.c) writes it; BART: the example program
Says SKIPPED where there is no Python with torch and transformers.
"""
import json
import os
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
        theirs = tokenizer.decode(theirs, skip_special_tokens=True)
        ours = subprocess.run([bart, folder, "--ids", " ".join(map(str, ids)), "--beams", str(beams), "--max", "16"],
                              capture_output=True, check=True).stdout.decode(errors="replace")[:-1]
        ours = ours.split("  ", 1)[1] if beams > 1 else ours
        if ours != theirs:
            print("ids %s, %d beams: ours %r, transformers %r" % (ids, beams, ours, theirs))
            bad = True
print("export: %s" % ("transformers differs" if bad else "transformers computes the same"))
sys.exit(bad)
