// One tooltip for the page. Whoever shows it gives the pointer's place in client coordinates; what it says is read out as well.

export interface TipRow {
  // a CSS colour, or none
  swatch?: string | undefined;
  name: string;
  cells: string[];
}

export interface TipContent {
  title?: string;
  // what is told in one line: a value, and what it is
  value?: string;
  note?: string;
  heads?: string[];
  rows?: TipRow[];
}

class TipState {
  content = $state.raw<TipContent | null>(null);
  x = $state(0);
  y = $state(0);

  show(x: number, y: number, content: TipContent): void {
    this.x = x;
    this.y = y;
    this.content = content;
  }

  hide(): void {
    this.content = null;
  }
}

export const tip = new TipState();
