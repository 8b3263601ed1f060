// Light, dark, or as the system is. What was chosen is kept in this browser, where it may be.

export type Choice = "system" | "light" | "dark";

const KEY = "microtome-theme";
const CHOICES: readonly Choice[] = ["system", "light", "dark"];

function kept(): Choice {
  try {
    const found = localStorage.getItem(KEY);
    return CHOICES.find((each) => each === found) ?? "system";
  } catch {
    return "system"; // a browser may refuse to keep anything
  }
}

class Theme {
  choice = $state<Choice>(kept());
  // counted up whenever colours change: what is drawn on a canvas reads it to be drawn anew
  version = $state(0);
  // the theme of what the page stands in, where that has one: it is followed as the system is
  #around: "light" | "dark" | "" = "";

  constructor() {
    this.#apply();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.version += 1));
  }

  next(): void {
    this.choice = CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length] ?? "system";
    try {
      localStorage.setItem(KEY, this.choice);
    } catch {
      // it holds until the page is closed
    }
    this.#apply();
    this.version += 1;
  }

  follow(around: "light" | "dark" | ""): void {
    this.#around = around;
    this.#apply();
    this.version += 1;
  }

  #apply(): void {
    const now = this.choice === "system" ? this.#around : this.choice;
    if (now) document.documentElement.dataset["theme"] = now;
    else delete document.documentElement.dataset["theme"];
  }
}

export const theme = new Theme();
