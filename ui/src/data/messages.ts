// What a page in a frame of a notebook and the widget around it say to each other. They share no origin, so all of it is messages:
// the page says that it is there, is given one end of a channel, and from then on both speak through that.

// page to window
export interface Ready {
  microtome: "ready";
}

// window to page, with the port
export interface Begin {
  microtome: "begin";
  address: string;
  theme: Around;
}

// The notebook's theme, where it says one.
export type Around = "light" | "dark" | "";

// page to widget: a GET, or a POST where there is a body
export interface Ask {
  kind: "ask";
  id: number;
  path: string;
  body: string | null;
}

export type FromPage = Ask | { kind: "abort"; id: number } | { kind: "address"; address: string };

// widget to page
export interface Answered {
  kind: "answer";
  id: number;
  status: number;
  zipped: boolean;
  body: ArrayBuffer;
}

export type ToPage = Answered | { kind: "theme"; theme: Around } | { kind: "go"; address: string };
