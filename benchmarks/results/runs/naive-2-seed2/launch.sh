# What the job of FOLDER/runs/naive-2-seed2 runs on every node; written by submit.sh.
export DATA_PREFIX=FOLDER/data
export TOKENIZER_MODEL=FOLDER/tokenizer.model
export SEED=2
export RUNS=FOLDER/runs
export NNODES=1
export PYTHON=${PYTHON:-VENV/bin/python}
exec FOLDER/runs/naive-2-seed2/code/examples/pretrain.sh 300k naive-2 
