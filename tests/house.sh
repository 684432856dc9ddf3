#!/bin/sh
# What makes the header hard to read, counted: fails where a count is above what it may be.
#   usage: sh tests/house.sh [-v [FILE]]        -v: also says where; FILE: another header than taskmoe.h
cd "$(dirname "$0")/.." && exec python3 tests/house.py "$@"
