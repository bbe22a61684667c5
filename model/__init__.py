"""The model package: everything between an example and the log-probability of a token.

    records.py     Prompt and Group, the two records that every stage passes around
    prompts.py     an example becomes a Prompt: token ids, pixel values, positions
    images.py      images in, from whatever a data set holds
    qwen.py        the model family, Qwen2.5-VL and Qwen2-VL: vision tower, positions, layers, head
    attention.py   attention for one prompt with many completions
    sampling.py    prompts become groups of sampled completions
    decoding.py    the cache of keys and values that sampling decodes against
    compiled.py    the same with fixed shapes, for a compiled step
    lora.py        adapters beside a frozen base; off, merged, and in PEFT's files
    sharding.py    weights, gradients and optimizer over many ranks, by torch's fully_shard
    policies.py    the policy in its roles: what trains, what samples, what is compared with
    loading.py     model folders in and out

Nothing here knows of rewards, losses, data sets or runs.
"""
