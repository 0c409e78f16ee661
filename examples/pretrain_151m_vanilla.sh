#!/bin/bash
# The baseline of the 151M pair. Settings and variables: common.sh.
NAME=vanilla
PHD_FLAGS=()
source "$(dirname "$0")/common.sh"
