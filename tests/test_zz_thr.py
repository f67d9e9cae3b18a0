def test_t():
    import torch
    assert torch.get_num_threads() == 1
