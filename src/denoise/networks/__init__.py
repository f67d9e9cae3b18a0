"""The networks (`unet2d`, `unet3d`, `residual`), their table (`catalogue`), and telling stored ones apart (`stored`).

Every network maps ``(B, Zin, Y, X) -> (B, Zout, Y, X)``, normalised values. Nothing is imported here, so that
`denoise.networks.spec` can be had without torch.
"""
