export const staticSource = () => { throw new Error("not written"); };
