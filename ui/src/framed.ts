// The page in a cell of a notebook: the same as main.ts, once the widget around it has said what to show.

import { mount } from "svelte";
import App from "./App.svelte";
import { begin } from "./data/framed";
import "./style.css";

await begin();
mount(App, { target: document.body });
