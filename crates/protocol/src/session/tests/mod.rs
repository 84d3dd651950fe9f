mod branch;
mod checkpoint;
mod content;
mod converge;
mod hostile;
mod rules;
mod world;
