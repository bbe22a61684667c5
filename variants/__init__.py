"""Other losses, each a small patch of a stage.

    gspo.patch   one ratio per completion         grpo.py `policy_loss`
    rloo.patch   leave-one-out baseline           grpo.py `group_advantages`
    ipo.patch    a finite margin                  dpo_sft.py `dpo_loss`
    apply.py     writes the patched copy of a stage
"""
