#!/bin/bash
# PHD-CSWA-2-16-32 of the 151M pair: the baseline and these three flags. Settings and variables: common.sh.
NAME=PHD-CSWA-2-16-32
PHD_FLAGS=(--phd-copies 2 --phd-window 16 --phd-chunk 32)
source "$(dirname "$0")/common.sh"
