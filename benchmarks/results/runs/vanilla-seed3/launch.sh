# What the job of FOLDER/runs/vanilla-seed3 runs on every node; written by submit.sh.
export DATA_PREFIX=FOLDER/data
export TOKENIZER_MODEL=FOLDER/tokenizer.model
export SEED=3
export RUNS=FOLDER/runs
export NNODES=1
export PYTHON=${PYTHON:-VENV/bin/python}
exec FOLDER/runs/vanilla-seed3/code/examples/pretrain.sh 300k vanilla 
