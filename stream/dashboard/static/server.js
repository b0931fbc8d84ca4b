// Orders to the dashboard's server.

/** The answer to an order, or an `error`. */
export async function send(path, order) {
  try {
    const answer = await fetch(path + location.search, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order),
    });
    return await answer.json();
  } catch (error) {
    return { error: "the dashboard does not answer" };
  }
}
