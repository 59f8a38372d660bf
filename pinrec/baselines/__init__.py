"""Published models that PinRec is compared with, on the same data and by the same measures."""
