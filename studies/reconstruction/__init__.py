"""Block reconstruction without labels, on pretrained MobileNets."""
