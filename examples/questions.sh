#!/bin/sh
# Three questions about tasks that the model has never been trained on.   usage: questions.sh ZEROSHOT MODEL
set -e
"$1" "$2" "Write the first word of the list in upper case." "violin, dog, soup" "castle, blue, shirt, bus"
echo
"$1" "$2" "Give the first letter of the profession in the list." "wolf, saw, nurse" "hat, baker, bread, ferry"
echo
"$1" "$2" "Write the animal in the list with a capital letter." "tiger, mango, hammer" "pear, boat, otter, red"
