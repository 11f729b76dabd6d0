import torch

from dcgan_dist.training.losses import fake_loss, generator_loss, real_loss


def test_losses_are_the_logarithms_of_the_paper():
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)
    d = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(real_loss(logits), -torch.log(d))
    torch.testing.assert_close(fake_loss(logits), -torch.log(1 - d))
    torch.testing.assert_close(generator_loss(logits), -torch.log(d))


def test_losses_stay_finite_where_the_sigmoid_saturates():
    logits = torch.tensor([-1e4, 1e4])
    assert real_loss(logits).tolist() == [1e4, 0.0]
    assert fake_loss(logits).tolist() == [0.0, 1e4]
