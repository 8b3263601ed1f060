"""The pages of an atlas in a cell of a notebook: in Jupyter, VS Code or Colab, wherever the kernel runs.

Call `show`. It gives a widget (`panel`) in which the page of `ui/` stands in a frame, unmodified; what the page asks goes as messages
to the kernel, where the application of `web` answers it in this process (`answers`). There is no server and no port.
"""

from microtome.notebook.show import show as show
