// Points on a canvas: WebGL2 where there is one, else in two dimensions; and a grid that finds the point under the pointer.

export interface View {
  // the middle of what is shown, in the units of the points, and pixels per unit
  x: number;
  y: number;
  scaleX: number;
  scaleY: number;
}

export interface Points {
  x: Float32Array;
  y: Float32Array;
  // red, green, blue, alpha of each point
  colours: Uint8Array;
}

export interface Painter {
  load(points: Points): void;
  paint(view: View, width: number, height: number, density: number, radius: number): void;
  end(): void;
}

const VERTEX = `#version 300 es
in vec2 place; in vec4 colour; uniform vec2 middle; uniform vec2 scale; uniform float size; out vec4 shade;
void main() { gl_Position = vec4((place - middle) * scale, 0.0, 1.0); gl_PointSize = size; shade = colour; }`;
const FRAGMENT = `#version 300 es
precision highp float; in vec4 shade; uniform float size; out vec4 pixel;
void main() {
  float away = length(gl_PointCoord - vec2(0.5)) * size;
  float cover = clamp(size * 0.5 - away, 0.0, 1.0) * shade.a;
  pixel = vec4(shade.rgb * cover, cover);
}`;

function compiled(gl: WebGL2RenderingContext): WebGLProgram | null {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]] as const) {
    const shader = gl.createShader(kind);
    if (!shader) return null;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return gl.getProgramParameter(program, gl.LINK_STATUS) ? program : null;
}

function inThree(canvas: HTMLCanvasElement): Painter | null {
  const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, alpha: true });
  const program = gl && compiled(gl);
  if (!gl || !program) return null;
  const uniform = (name: string) => gl.getUniformLocation(program, name);
  const [middle, scale, size] = [uniform("middle"), uniform("scale"), uniform("size")];
  const array = gl.createVertexArray();
  const [places, colours] = [gl.createBuffer(), gl.createBuffer()];
  let count = 0;
  return {
    load: (points) => {
      count = points.x.length;
      const both = new Float32Array(2 * count);
      for (let n = 0; n < count; n += 1) {
        both[2 * n] = points.x[n]!;
        both[2 * n + 1] = points.y[n]!;
      }
      gl.bindVertexArray(array);
      gl.bindBuffer(gl.ARRAY_BUFFER, places);
      gl.bufferData(gl.ARRAY_BUFFER, both, gl.STATIC_DRAW);
      const place = gl.getAttribLocation(program, "place");
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 0, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, colours);
      gl.bufferData(gl.ARRAY_BUFFER, points.colours, gl.STATIC_DRAW);
      const colour = gl.getAttribLocation(program, "colour");
      gl.enableVertexAttribArray(colour);
      gl.vertexAttribPointer(colour, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    },
    paint: (view, width, height, density, radius) => {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.useProgram(program);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.bindVertexArray(array);
      gl.uniform2f(middle, view.x, view.y);
      gl.uniform2f(scale, (2 * view.scaleX) / width, (2 * view.scaleY) / height);
      gl.uniform1f(size, 2 * radius * density + 1);
      gl.drawArrays(gl.POINTS, 0, count);
    },
    end: () => gl.getExtension("WEBGL_lose_context")?.loseContext(),
  };
}

function inTwo(canvas: HTMLCanvasElement): Painter {
  const context = canvas.getContext("2d");
  let points: Points = { x: new Float32Array(), y: new Float32Array(), colours: new Uint8Array() };
  return {
    load: (given) => {
      points = given;
    },
    paint: (view, width, height, density, radius) => {
      if (!context) return;
      context.setTransform(density, 0, 0, density, 0, 0);
      context.clearRect(0, 0, width, height);
      const { x, y, colours } = points;
      const size = 2 * radius;
      let last = -1;
      for (let n = 0; n < x.length; n += 1) {
        const left = width / 2 + (x[n]! - view.x) * view.scaleX;
        const top = height / 2 - (y[n]! - view.y) * view.scaleY;
        if (left < -size || top < -size || left > width + size || top > height + size) continue;
        const key = (colours[4 * n]! << 16) | (colours[4 * n + 1]! << 8) | colours[4 * n + 2]!;
        if (key !== last) context.fillStyle = `rgb(${colours[4 * n]} ${colours[4 * n + 1]} ${colours[4 * n + 2]} / ${colours[4 * n + 3]! / 255})`;
        last = key;
        context.fillRect(left - radius, top - radius, size, size);
      }
    },
    end: () => {},
  };
}

// A canvas that was asked for one kind of drawing gives no other: whether there is WebGL2 is tried on one of its own.
let three: boolean | null = null;

export function painter(canvas: HTMLCanvasElement): Painter {
  if (three === null) {
    const trial = inThree(document.createElement("canvas"));
    three = trial !== null;
    trial?.end();
  }
  return (three ? inThree(canvas) : null) ?? inTwo(canvas);
}

// Where points are, by cells of a grid; cells hold about two points each.
export class Grid {
  readonly #x: Float32Array;
  readonly #y: Float32Array;
  readonly #side: number;
  readonly #starts: Uint32Array;
  readonly #members: Uint32Array;
  readonly low: readonly [number, number];
  readonly high: readonly [number, number];

  constructor(x: Float32Array, y: Float32Array) {
    this.#x = x;
    this.#y = y;
    const count = x.length;
    let [left, right, below, above] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let n = 0; n < count; n += 1) {
      left = Math.min(left, x[n]!);
      right = Math.max(right, x[n]!);
      below = Math.min(below, y[n]!);
      above = Math.max(above, y[n]!);
    }
    this.low = count ? [left, below] : [0, 0];
    this.high = count ? [right > left ? right : left + 1, above > below ? above : below + 1] : [1, 1];
    this.#side = Math.max(1, Math.ceil(Math.sqrt(count / 2)));
    this.#starts = new Uint32Array(this.#side * this.#side + 1);
    const cells = new Uint32Array(count);
    for (let n = 0; n < count; n += 1) {
      cells[n] = this.#column(x[n]!) + this.#side * this.#row(y[n]!);
      this.#starts[cells[n]! + 1]! += 1;
    }
    for (let n = 0; n < this.#side * this.#side; n += 1) this.#starts[n + 1]! += this.#starts[n]!;
    const next = this.#starts.slice();
    this.#members = new Uint32Array(count);
    for (let n = 0; n < count; n += 1) this.#members[next[cells[n]!]!++] = n;
  }

  #cell(value: number, low: number, high: number): number {
    return Math.max(0, Math.min(this.#side - 1, Math.floor(((value - low) / (high - low)) * this.#side)));
  }

  #column(x: number): number {
    return this.#cell(x, this.low[0], this.high[0]);
  }

  #row(y: number): number {
    return this.#cell(y, this.low[1], this.high[1]);
  }

  // The best of the points within a box, by a distance that may be infinite; none: -1.
  #best(box: readonly [number, number, number, number], distance: (n: number) => number, limit: number): number {
    let best = -1;
    let least = limit;
    const [first, last] = [this.#column(box[0]), this.#column(box[1])];
    for (let row = this.#row(box[2]); row <= this.#row(box[3]); row += 1) {
      const from = this.#starts[row * this.#side + first]!;
      const to = this.#starts[row * this.#side + last + 1]!;
      for (let k = from; k < to; k += 1) {
        const n = this.#members[k]!;
        const away = distance(n);
        if (away < least) {
          least = away;
          best = n;
        }
      }
    }
    return best;
  }

  // The point nearest to a place, at most `reach` pixels away.
  near(x: number, y: number, view: View, reach: number): number {
    const [wide, tall] = [reach / view.scaleX, reach / view.scaleY];
    const away = (n: number) => Math.hypot((this.#x[n]! - x) * view.scaleX, (this.#y[n]! - y) * view.scaleY);
    return this.#best([x - wide, x + wide, y - tall, y + tall], away, reach);
  }

  // The next point from another in one of four directions, preferring what lies straight ahead.
  beyond(from: number, way: readonly [number, number], view: View): number {
    const [x, y] = [this.#x[from]!, this.#y[from]!];
    const away = (n: number) => {
      if (n === from) return Infinity;
      const dx = (this.#x[n]! - x) * view.scaleX;
      const dy = (this.#y[n]! - y) * view.scaleY;
      const ahead = dx * way[0] + dy * way[1];
      const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      return ahead > 0 && aside <= 2 * ahead ? ahead + 2 * aside : Infinity;
    };
    for (let reach = 16; ; reach *= 4) {
      const [wide, tall] = [reach / view.scaleX, reach / view.scaleY];
      const found = this.#best([x - wide, x + wide, y - tall, y + tall], away, Infinity);
      const whole = wide > this.high[0] - this.low[0] && tall > this.high[1] - this.low[1];
      if (found >= 0 || whole) return found;
    }
  }
}
