"""One image under one attack: `attack` computes, `page` shows."""
