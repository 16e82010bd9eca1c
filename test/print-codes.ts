/** Imported before a program with a `Service` it prints a line for each request that ends: its code. */
import { Service } from 'octconv/service';

const { open } = Service;
Service.open = async (...args) => {
  const service = await open.apply(Service, args);
  return service.on('request', (_name, _version, { code }) => console.log(code));
};
