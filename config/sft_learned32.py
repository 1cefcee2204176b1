# Fine-tuning of the learned-table model (Bochkov, appendix A.1, Tables 2 and 3), on one H100:
#   torchrun --nproc_per_node=1 train.py config/sft_learned32.py
# Prepare the data first: python prepare_data.py config/data_sft.py
init_from = "out/learned32"  # decides the architecture and the context, 1024 tokens
input_layer = "learned"  # must be that of the checkpoint
dataset = "sft"

# 6 sequences x 1024 tokens x 100 micro-steps = 614,400 tokens a step
batch_size = 6
gradient_accumulation_steps = 100
max_steps = 1000  # the paper does not say; ours

# optimizer; the paper gives no min_lr: a tenth is ours
learning_rate = 2e-5
min_lr = 2e-6
warmup_steps = 100
weight_decay = 0.01
grad_clip = 1.0
dtype = "float32"

eval_interval = 50
eval_tokens = 1_048_576
log_interval = 1
